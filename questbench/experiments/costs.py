"""What a cell will cost before it runs: whether it fits into memory, and about how long it takes.

One rule about memory for all experiments: a cell is refused where it needs more than is available, and available is
what the system could give to new programs, page cache included, within the limits of the control groups.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from questbench import units
from questbench.errors import CellError, SkipCell
from questbench.measure.memory import free_bytes


def require(needed: float, device: str, *, beside: str = "", hint: str, reserved: int = 0) -> None:
    """Refuse what cannot fit instead of being killed half-way.

    Args:
        needed: bytes that will be allocated.
        beside: what is in memory already, as in "beside the weights".
        hint: what to do.
        reserved: bytes to leave alone.

    Raises:
        CellError: it does not fit.
    """
    free = left(device, reserved)
    if needed > free:
        raise CellError(
            f"out of memory: this cell needs about {gib(needed)}{beside and ' ' + beside} and {gib(free)} are free.",
            hint,
        )


def left(device: str, reserved: int = 0) -> int:
    """Bytes that may be allocated, ``reserved`` ones left alone."""
    return free_bytes(device) - reserved


def gib(size: float) -> str:
    """Bytes for a sentence."""
    return f"{size / 2**30:,.1f} GiB"


class OutOfTime(SkipCell):
    """The time limit of the run was reached: what is measured stays, what is missing says so."""


class Deadline:
    """A limit on the duration of a whole run.

    Args:
        seconds: the limit; ``None`` for none.
        clock: seconds; tests pass their own.
    """

    def __init__(self, seconds: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock, self._begin = seconds, clock, clock()

    @property
    def left(self) -> float:
        """Seconds; infinite without a limit."""
        return float("inf") if self._limit is None else self._limit - (self._clock() - self._begin)

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return self.left <= 0

    def within(self, seconds: float) -> float:
        """As long as asked for, but not beyond the limit."""
        return max(min(seconds, self.left), 0.0)

    def check(self) -> None:
        """Stop here if the time is over.

        Raises:
            OutOfTime: it is.
        """
        if self.passed:
            raise OutOfTime(f"{self.reason[:1].upper()}{self.reason[1:]}.")

    @property
    def reason(self) -> str:
        """Why something is missing."""
        return f"the time limit of {units.duration(self._limit or 0)} was reached first (--time-limit)"


class Forecast:
    """How long a run will take: as predicted at first, then corrected by what its cells took.

    Args:
        predicted: seconds by cell, in the order in which they run; 0 where nothing is known.
        clock: seconds; tests pass their own.
    """

    def __init__(self, predicted: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._left, self._clock = dict(predicted), clock
        self._done, self._took = 0.0, 0.0
        self._cells, self._begin = 0, clock()

    def skip(self, cell: str) -> None:
        """It was measured by an earlier run."""
        self._left.pop(cell, None)
        self._begin = self._clock()

    def finished(self, cell: str) -> None:
        """It has just ended."""
        now = self._clock()
        self._done += self._left.pop(cell, 0.0)
        self._took += now - self._begin
        self._cells += 1
        self._begin = now

    def seconds(self) -> float | None:
        """Seconds left, those of the running cell that have passed taken off; ``None`` where nobody knows."""
        if not self._left:
            return 0.0
        if all(self._left.values()):
            scale = self._took / self._done if self._done else 1.0
            total = scale * sum(self._left.values())
        elif self._cells:
            total = self._took / self._cells * len(self._left)
        else:
            return None
        return max(total - (self._clock() - self._begin), 0.0)

    def words(self) -> str:
        """``, about 5 min left``; nothing where it is not known or nothing is left."""
        seconds = self.seconds()
        return f", about {units.duration(seconds)} left" if seconds else ""


def duration(seconds: Iterable[float], limit: float | None) -> str:
    """The forecast of a card.

    Args:
        seconds: of the cells; 0 stands for one of which nothing is known.
        limit: of the run.
    """
    known = list(seconds)
    if limit is not None and (sum(known) > limit or not all(known)):
        return f"{units.duration(limit)} at most (--time-limit); what is missing then is marked"
    if not all(known):
        return "known once the first cell has run; --time-limit ends the run earlier"
    return f"about {units.duration(sum(known))} (an estimate); --time-limit ends the run earlier"
