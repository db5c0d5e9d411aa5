"""A backend that times its ops: wraps another one and never fuses, so that every stage shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from questbench.kernels._ops import Ops

STAGES = ("append", "score", "select", "attend", "evict")


class StagedOps(Ops):
    """Delegates every op and adds up the seconds that each took."""

    def __init__(self, ops: Ops, clock: Callable[[], float]) -> None:
        self._ops, self._clock = ops, clock
        self.seconds: dict[str, float] = {}

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

    def _timed(self, stage: str, *args: Any, **kwargs: Any) -> Any:
        start = self._clock()
        result = getattr(self._ops, stage)(*args, **kwargs)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + self._clock() - start
        return result
