"""Compiled backends: the ops of a library behind torch operators, derived from the declarations in ``_ops.py``.

The operators are defined through ``torch.library.Library``, with fakes and mutation in their schemas, so that
torch.compile sees one graph and CUDA graphs capture them. Eager calls go straight to the function behind the operator:
a decode step lasts a fraction of a millisecond, and every microsecond of a call counts.

Shapes, types, strides and devices are checked by the binding (``contract.h``), so that what stands here lets tensors of
any rank pass; what tensors hold is checked by ``_values.py``, on request.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from questbench.kernels import _values
from questbench.kernels._operators import OPERATORS, Operator
from questbench.kernels._ops import Ops

Function = Callable[..., Any]
Declared = TypeVar("Declared", bound=Function)


class Library(Protocol):
    """A compiled library and what it is told beside the op's own arguments."""

    def load(self) -> Any:
        """The module whose functions carry the ops' names; compiles on first use."""
        ...

    def extra(self, op: str) -> Callable[..., tuple[Any, ...]]:
        """What gives the last arguments of a call: threads on a CPU, room to work in on a GPU.

        It is given the operator's arguments that its parameters are named after.
        """
        ...


def functions(library: Library) -> dict[str, Function]:
    """The ops of a library as functions of the operators' arguments, in their order."""
    return {name: _function(op, library) for name, op in OPERATORS.items()}


def _function(op: Operator, library: Library) -> Function:
    """Written out as text, once: taking arguments apart in every call would cost microseconds."""
    extra = library.extra(op.name)
    names = [argument.name for argument in op.arguments]
    laid_out = {**dict.fromkeys(op.strided, "whole"), **dict.fromkeys(op.rows, "rows")}
    passed = [f"{laid_out[name]}({name})" if name in laid_out else name for name in names]
    source = (
        f"def {op.name}({', '.join(names)}):\n"
        f"    results = make({', '.join(inspect.signature(op.make).parameters)})\n"
        f"    room = extra({', '.join(inspect.signature(extra).parameters)})\n"
        f"    if values.enabled:\n"
        f"        check(({', '.join(names)},))\n"
        f"    load().{op.name}({', '.join(passed)}, *results, *room)\n"
        f"    return {'results[0]' if len(op.results) == 1 else 'results or None'}\n"
    )
    space: dict[str, Any] = {"make": op.make, "extra": extra, "values": _values, "check": _values.checker(op)}
    space |= {"load": library.load, "whole": _whole, "rows": _rows}
    exec(source, space)
    made: Function = space[op.name]
    return made


def _whole(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _rows(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.dim() == 0 or tensor.stride(-1) == 1 else tensor.contiguous()


def _given_back(results: tuple[Tensor, ...]) -> Any:
    return results[0] if len(results) == 1 else results or None


def register(namespace: str, key: str, eager: dict[str, Function]) -> torch.library.Library:
    """Make the functions operators of ``namespace`` for the dispatch key ``key``; keep the result alive."""
    library = torch.library.Library(namespace, "DEF")
    for name, function in eager.items():
        library.define(OPERATORS[name].schema)
        library.impl(name, function, key)
        torch.library.register_fake(f"{namespace}::{name}", _fake(OPERATORS[name]), lib=library)
    return library


def _fake(op: Operator) -> Function:
    make = op.picker(op.make)
    return lambda *given: _given_back(make(given))


def _method(declared: Declared) -> Declared:
    return cast(Declared, OPERATORS[declared.__name__].method_of("_op"))


class NativeOps(Ops):
    """The ops of a compiled library.

    Args:
        eager: as :func:`functions` gives them.
        namespace: where they are registered as operators; ``None`` where they are not.
    """

    def __init__(self, eager: dict[str, Function], namespace: str | None = None) -> None:
        self._eager, self._namespace = eager, namespace

    def _op(self, name: str) -> Function:
        """The registered operator where a graph is traced, else the function behind it: a third of a call less."""
        if self._namespace is not None and torch.compiler.is_compiling():
            operator: Function = getattr(getattr(torch.ops, self._namespace), name)
            return operator
        return self._eager[name]

    append = _method(Ops.append)
    score = _method(Ops.score)
    select = _method(Ops.select)
    attend = _method(Ops.attend)
    attend_top = _method(Ops.attend_top)
    evict = _method(Ops.evict)
    quantize = _method(Ops.quantize)
    estimate = _method(Ops.estimate)
    prune = _method(Ops.prune)
