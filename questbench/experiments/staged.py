"""A backend that times its ops: wraps another one and never fuses, so that every stage shows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, cast

from questbench.cache import LayerCache
from questbench.kernels._ops import Ops

PARTS = {"quantize": "append", "estimate": "score", "prune": "select"}
"""Ops that are counted with the stage whose work they refine."""
Declared = TypeVar("Declared", bound=Callable[..., Any])
Marks = list[tuple[str, Any, Any]]
"""Stage, mark before, mark after; what a mark is, the clock knows."""


class StageClock(Protocol):
    """Times the stages within a step."""

    def begin(self) -> None:
        """Before a step."""

    def mark(self) -> Any:
        """A point in time."""

    def seconds(self, marks: Marks) -> dict[str, float]:
        """Seconds per stage, added up."""


def _timed(op: Declared) -> Declared:
    """An op of the backend inside, between two marks."""
    name = op.__name__

    def call(self: StagedOps, *args: Any, **kwargs: Any) -> Any:
        before = self.mark()
        result = getattr(self.inside, name)(*args, **kwargs)
        self.marks.append((PARTS.get(name, name), before, self.mark()))
        return result

    return cast(Declared, call)


class StagedOps(Ops):
    """Delegates every op with a mark of the clock before and after."""

    def __init__(self, ops: Ops, mark: Callable[[], Any]) -> None:
        self.inside, self.mark = ops, mark
        self.marks: Marks = []

    @property
    def name(self) -> str:
        """Of the backend inside."""
        return self.inside.name

    def unavailable(self) -> str | None:
        """As the backend inside."""
        return self.inside.unavailable()

    append = _timed(Ops.append)
    score = _timed(Ops.score)
    select = _timed(Ops.select)
    attend = _timed(Ops.attend)
    evict = _timed(Ops.evict)
    quantize = _timed(Ops.quantize)
    estimate = _timed(Ops.estimate)
    prune = _timed(Ops.prune)


@contextlib.contextmanager
def staged(parts: Sequence[LayerCache], mark: Callable[[], Any]) -> Iterator[Marks]:
    """Time the ops of some caches during the block; the marks grow until they are cleared."""
    plain = parts[0].ops
    ops = StagedOps(plain, mark)
    for part in parts:
        part.ops = ops
    try:
        yield ops.marks
    finally:
        for part in parts:
            part.ops = plain


def rest(whole: float, parts: Iterable[float]) -> float:
    """Seconds of a step between and around its parts."""
    return max(whole - sum(parts), 0.0)


def summed(spans: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Seconds per stage."""
    total: dict[str, float] = {}
    for stage, spent in spans:
        total[stage] = total.get(stage, 0.0) + spent
    return total
