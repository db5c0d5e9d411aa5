"""How long a run of many samples will still take, said in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from questbench import units


class TimeLeft:
    """Extrapolates from finished samples; a sample's cost is taken to grow with its length.

    Args:
        work: (task, length, samples) in the order in which they run.
        clock: seconds; replaced in tests.
    """

    def __init__(self, work: Sequence[tuple[str, int, int]], clock: Callable[[], float] = time.monotonic) -> None:
        self._left = {(task, length): samples for task, length, samples in work}
        self._spent: dict[str, tuple[float, float]] = {}
        """Per task: seconds, and tokens of prompt that they went into."""
        self._clock, self._last = clock, clock()

    def skip(self, task: str, length: int, samples: int) -> None:
        """Some samples were done earlier; time begins to count now."""
        self._left[task, length] -= samples
        self._last = self._clock()

    def finished(self, task: str, length: int) -> None:
        """One sample is done."""
        now = self._clock()
        seconds, tokens = self._spent.get(task, (0.0, 0.0))
        self._spent[task] = seconds + now - self._last, tokens + length
        self._left[task, length] -= 1
        self._last = now

    def seconds(self) -> float | None:
        """Seconds left; ``None`` before the first sample. A task not yet seen costs as much as the others so far."""
        if not self._spent:
            return None
        overall = sum(spent for spent, _ in self._spent.values()) / sum(tokens for _, tokens in self._spent.values())
        total = 0.0
        for (task, length), samples in self._left.items():
            seconds, tokens = self._spent.get(task, (overall, 1.0))
            total += samples * length * seconds / tokens
        return total

    def words(self) -> str:
        """``, about 5 min left``; nothing where it is not known or nothing is left."""
        seconds = self.seconds()
        if not seconds or not any(self._left.values()):
            return ""
        return f", about {units.duration(seconds)} left"
