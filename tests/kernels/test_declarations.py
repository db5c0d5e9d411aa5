"""An op is declared once, by its method in ``Ops``: schemas and methods follow from it, C++ bindings agree with it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest

from questbench._paths import kernel_sources
from questbench.kernels._native import NativeOps
from questbench.kernels._operators import OPERATORS, Argument, Operator, code, operator
from questbench.kernels._ops import MassMode, Ops
from questbench.kernels._paged import Paged
from questbench.kernels.reference import ReferenceOps

KINDS = {
    "TensorView": "Tensor",
    "Optional<TensorView>": "Tensor?",
    "int64_t": "int",
    "double": "float",
    "bool": "bool",
}
BINDINGS = {"cpu": "cpu/bind.cpp", "cuda": "cuda/bind.cu"}
EXTRA = {
    "cpu": {op: ["threads"] for op in OPERATORS},
    "cuda": {
        "append": ["workspace"],
        "score": [],
        "select": ["keys"],
        "attend": ["workspace", "splits", "logits"],
        "evict": ["workspace"],
        "quantize": [],
        "estimate": [],
        "prune": ["masses"],
    },
}
"""What each library is told beside the arguments and the results; the ops that it has."""


def bound(backend: str, op: str) -> list[tuple[str, str]]:
    """(name, kind) of every argument of a C++ binding; a name that C++ keeps for itself has a ``_`` behind it."""
    text = (kernel_sources() / BINDINGS[backend]).read_text()
    found = re.search(rf"void bind_{op}\(([^)]*)\) {{", text)
    assert found is not None, f"{BINDINGS[backend]} binds no {op}"
    spelled = [one.split() for one in found.group(1).split(",")]
    return [(name.rstrip("_"), KINDS[kind]) for kind, name in spelled]


@pytest.mark.parametrize(("backend", "op"), [(backend, op) for backend, ops in EXTRA.items() for op in ops])
def test_a_binding_takes_what_is_declared_in_this_order(backend: str, op: str) -> None:
    declared = OPERATORS[op]
    wanted = [(argument.name, argument.kind) for argument in declared.arguments]
    wanted += [(name, "Tensor") for name in declared.results]
    given = bound(backend, op)
    assert given[: len(wanted)] == wanted
    assert [name for name, _ in given[len(wanted) :]] == EXTRA[backend][op]


@pytest.mark.parametrize("op", OPERATORS)
def test_methods_have_the_declared_signature(op: str) -> None:
    def shape(method: Callable[..., object]) -> list[tuple[str, object, object]]:
        return [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]

    for backend in (ReferenceOps, NativeOps):
        assert shape(getattr(backend, op)) == shape(getattr(Ops, op))


def test_what_an_op_becomes() -> None:
    def blend(self: object, paged: Paged, count: int, *, mass_mode: MassMode = "sum") -> None: ...

    made = Operator(blend, ("lengths", "page_size", "bounds?"), ("lengths",), (), lambda: (), (), ())
    assert made.schema == "blend(Tensor(a!) lengths, int page_size, Tensor? bounds, int count, int mass_mode) -> ()"
    assert made.arguments[1] == Argument("page_size", "int", "paged.k.shape[2]")
    assert made.words == {"mass_mode": {"none": 0, "last": 1, "sum": 2}}
    assert made.picker(lambda count, page_size: (count, page_size))([1, 2, 3, 4, 5]) == (4, 2)


def test_words_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="merge 'mean' is not one of none, max"):
        code({"none": 0, "max": 1}, "mean", "merge")


def test_an_op_that_is_declared_stands_in_the_table() -> None:
    @operator(results="out", strided="q")
    def twice(self: object, q: object) -> object: ...

    assert OPERATORS.pop("twice").strided == ("q",)
