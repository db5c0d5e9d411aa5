"""A backend that times its ops: wraps another one and never fuses, so that every stage shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from questbench.kernels._ops import Ops

STAGES = ("append", "score", "select", "attend", "evict")
PARTS = {"quantize": "append", "estimate": "score", "prune": "select"}
"""Ops that are counted with the stage whose work they refine."""
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


class StagedOps(Ops):
    """Delegates every op with a mark of the clock before and after."""

    def __init__(self, ops: Ops, mark: Callable[[], Any]) -> None:
        self._ops, self._mark = ops, mark
        self.marks: Marks = []

    @property
    def name(self) -> str:
        """Of the backend inside."""
        return self._ops.name

    def unavailable(self) -> str | None:
        """As the backend inside."""
        return self._ops.unavailable()

    def append(self, *args: Any, **kwargs: Any) -> None:
        """Timed."""
        self._timed("append", *args, **kwargs)

    def score(self, *args: Any, **kwargs: Any) -> Tensor:
        """Timed."""
        scores: Tensor = self._timed("score", *args, **kwargs)
        return scores

    def select(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Timed."""
        lists: tuple[Tensor, Tensor] = self._timed("select", *args, **kwargs)
        return lists

    def attend(self, *args: Any, **kwargs: Any) -> Tensor:
        """Timed."""
        out: Tensor = self._timed("attend", *args, **kwargs)
        return out

    def evict(self, *args: Any, **kwargs: Any) -> None:
        """Timed."""
        self._timed("evict", *args, **kwargs)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Timed, as a part of append."""
        self._timed("quantize", *args, **kwargs)

    def estimate(self, *args: Any, **kwargs: Any) -> Tensor:
        """Timed, as a part of score."""
        logits: Tensor = self._timed("estimate", *args, **kwargs)
        return logits

    def prune(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Timed, as a part of select."""
        lists: tuple[Tensor, Tensor] = self._timed("prune", *args, **kwargs)
        return lists

    def _timed(self, op: str, *args: Any, **kwargs: Any) -> Any:
        before = self._mark()
        result = getattr(self._ops, op)(*args, **kwargs)
        self.marks.append((PARTS.get(op, op), before, self._mark()))
        return result
