"""A backend whose every call runs under several schedules, in watched memory, and must leave the same bits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from guarded import GuardedRoom
from torch import Tensor

from questbench.kernels._operators import OPERATORS, PARTS
from questbench.kernels._ops import Ops

FIELDS = {name: value.removeprefix("{}.") for name, value in PARTS.items()}
"""Fields of the paged store, by the names of the operators."""


class ScheduleError(AssertionError):
    """Two schedules left different results: a race."""


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, but any NaN equals any other."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    nan = a.isnan()
    return torch.equal(nan, b.isnan()) and torch.equal(
        a.masked_fill(nan, 0).contiguous().view(torch.uint8), b.masked_fill(nan, 0).contiguous().view(torch.uint8)
    )


class Watched:
    """Has the ops of an :class:`Ops`.

    Args:
        inner: the backend.
        set_seed: chooses the schedule of the calls that follow.
        seeds: the schedules that each call runs under; all must agree.
        rest: looks, after each call, at what the backend keeps from call to call.
    """

    device = "cpu"
    name = "emulator"

    def __init__(
        self,
        inner: Ops,
        set_seed: Callable[[int], None],
        seeds: Sequence[int],
        rest: Callable[[], None] = lambda: None,
    ) -> None:
        self._inner, self._set_seed, self._seeds, self._rest = inner, set_seed, seeds, rest

    def __getattr__(self, op: str) -> Callable[..., Any]:
        if op not in OPERATORS:
            raise AttributeError(op)
        return lambda *given, **named: self._call(op, given, named)

    def _call(self, op: str, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        arguments = inspect.signature(getattr(self._inner, op)).bind(*given, **named).arguments
        written = [name for name in OPERATORS[op].writes if isinstance(_held(arguments, name), Tensor)]
        first: tuple[Any, list[Tensor]] | None = None
        for seed in self._seeds:
            copies = {name: _held(arguments, name).clone() for name in written}
            self._set_seed(seed)
            with GuardedRoom() as room:
                result = getattr(self._inner, op)(**_with(arguments, copies))
            room.check()
            self._rest()
            left = [*_tensors(result), *copies.values()]
            if first is None:
                first = result, left
            elif not all(same(a, b) for a, b in zip(first[1], left, strict=True)):
                raise ScheduleError(f"{op}: schedule {seed} leaves other results than schedule {self._seeds[0]}")
        assert first is not None
        for name, copy in zip(written, first[1][len(_tensors(first[0])) :], strict=True):
            _held(arguments, name).copy_(copy)
        return first[0]


def _held(arguments: dict[str, Any], name: str) -> Any:
    """An argument of the operator, found among those of the method."""
    return getattr(arguments["paged"], FIELDS[name]) if name in FIELDS else arguments.get(name)


def _with(arguments: dict[str, Any], copies: dict[str, Tensor]) -> dict[str, Any]:
    fields = {FIELDS[name]: copy for name, copy in copies.items() if name in FIELDS}
    paged = {"paged": arguments["paged"]._replace(**fields)} if "paged" in arguments else {}
    return {**arguments, **paged, **{name: copy for name, copy in copies.items() if name not in FIELDS}}


def _tensors(result: Any) -> list[Tensor]:
    if result is None:
        return []
    return [result] if isinstance(result, Tensor) else list(result)
