"""What a cell will cost before it runs: the bytes that its steps read, the memory that it takes, and how long.

One model for all experiments: bytes and memory as functions of shape, method and length. One rule about memory: a cell
is refused where it needs more than is available, and available is what the system could give to new programs, page
cache included, within the limits of the control groups.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from questbench import units
from questbench.errors import CellError, SkipCell
from questbench.measure.memory import free_bytes
from questbench.methods._base import CacheShape, Method
from questbench.methods._make import make

LIBRARY_BYTES = 320 << 20
"""Workspaces of another library: two of 128 MiB, and smaller ones per path."""
MASS_BYTES = 4 * (128 << 20)
"""Scores of a part of the prompt whose attention mass is summed."""
REACHED = 0.6
"""Share of a copy's speed that a decode step reaches."""


@dataclass(frozen=True)
class Model:
    """What decides the bytes of a step: all layers of a model, or one layer of attention alone (``kernel``)."""

    cache: CacheShape
    """Of one layer; of all, unless :attr:`caches` says otherwise."""
    windows: Sequence[int | None] = (None,)
    """Per layer the window that it slides; ``None`` for full attention."""
    dense_layers: int = 0
    """Leading layers that are dense under every method."""
    widest: int = 0
    """Widest activation, in elements."""
    caches: Sequence[CacheShape] = ()
    """Of each layer, for models whose layers may differ."""

    def shape(self, index: int) -> CacheShape:
        """The cache of a layer."""
        if self.caches:
            return self.caches[index]
        return dataclasses.replace(self.cache, index=index, layers=len(self.windows))

    def cache_read(self, method: Method, length: int, rows: int = 1) -> int:
        """Bytes of cache that a decode step reads where the text, the step's own token included, is ``length`` long."""
        dense, total = make("dense", 0), self.slid(length, 1)
        for index, window in enumerate(self.windows):
            if window is None:
                total += (dense if index < self.dense_layers else method).bytes_read(length, self.shape(index))
        return rows * total

    def slid(self, length: int, rows: int, coming: int = 0) -> int:
        """Bytes that the sliding layers hold, room for ``coming`` entries of each window left."""
        windows = [(index, window) for index, window in enumerate(self.windows) if window is not None]
        return rows * sum(self.shape(index).entry_bytes * min(window - coming, length) for index, window in windows)

    def paged(self, entries: int, rows: int) -> int:
        """Bytes of ``entries`` per row in pages of all full-attention layers, with bounds."""
        full = [index for index, window in enumerate(self.windows) if window is None]
        entry = rows * sum(self.shape(index).entry_bytes for index in full)
        return entry * entries + entry * entries // self.cache.page_size


@dataclass(frozen=True)
class Need:
    """The memory that a cell will allocate beside the weights; the rule that caches are allocated by ahead.

    The text of all rows is stored once, in pages that the methods share, with bounds; every method owns the pages of
    its new entries (one that drops has dense layers too) and one that drops ``entries + 1`` entries per row besides.
    While a prompt runs, activations of one part of it are alive.
    """

    shared: int
    own: Mapping[str, int]
    working: int = 0

    @property
    def total(self) -> int:
        """All of it, where the methods' caches are alive together."""
        return self.shared + sum(self.own.values()) + self.working

    @property
    def largest(self) -> int:
        """The same where one of them is alive at a time."""
        return self.shared + max(self.own.values()) + self.working


def need(
    model: Model,
    methods: Mapping[str, Method],
    *,
    rows: int,
    length: int,
    room: int = 0,
    part: int = 0,
    loops: int = 0,
    copies: Mapping[str, int] | None = None,
    forked: bool = True,
) -> Need:
    """The rule of :class:`Need` in numbers.

    Args:
        length: tokens of the text.
        room: new entries per row that are allocated ahead.
        part: tokens of the prompt that run through the model at once; 0 where nothing runs.
        loops: caches of baselines over the same text.
        copies: caches of a method that take turns, each filled for itself rather than gathered from a prompt's; one.
        forked: whether methods that keep everything share their pages.
    """
    size, longest = model.cache.page_size, length + room
    times = copies or dict.fromkeys(methods, 1)
    text = model.paged(-(-longest // size) * size, rows)
    new = -(-room // size) * size + 2 * size
    kept = {name: int(method.tokens_resident(longest)) for name, method in methods.items() if not method.keeps_all}
    texts = max((times[name] for name in methods if name not in kept), default=1) if forked else 0
    own = {}
    for name in methods:
        if name in kept:
            held = kept[name] + size
            # What is gathered is copied once more, one layer at a time.
            gathered = 3 * model.cache.entry_bytes * rows * length if copies is None else 0
            own[name] = times[name] * model.paged(held if copies else new + held, rows) + gathered
        else:
            own[name] = texts * model.paged(new, rows) if forked else times[name] * text
        own[name] += model.slid(longest, rows)
    if loops:
        own["baselines"] = loops * (texts * model.paged(new, rows) + model.slid(longest, rows)) + LIBRARY_BYTES
    working = 4 * rows * part * model.widest * model.cache.element_bytes
    if part and any(method.prompt_mass == "sum" for method in methods.values()):
        working += MASS_BYTES
    return Need(texts * text, own, working)


def step_seconds(traffic: float, rate: float) -> float:
    """About how long a decode step takes that reads so many bytes.

    Args:
        rate: bytes per second of a copy.
    """
    return traffic / (REACHED * rate)


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
    """How long a run will take: as predicted at first, then corrected by what its parts took.

    Args:
        cost: of every part of the run, in the order in which they run: in seconds as predicted, or in whatever else it
            grows with; 0 where nothing is known.
        seconds: whether ``cost`` is in seconds.
        counts: how often a part is run; once, unless given.
        kind: parts of one kind take as long per cost; one of another kind, as long as all others so far.
        clock: seconds; tests pass their own.
    """

    def __init__(
        self,
        cost: Mapping[Any, float],
        *,
        seconds: bool = True,
        counts: Mapping[Any, int] | None = None,
        kind: Callable[[Any], Hashable] = lambda part: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        known = all(cost.values())
        self._cost = dict(cost) if known else dict.fromkeys(cost, 1.0)
        self._left = dict(counts) if counts is not None else dict.fromkeys(cost, 1)
        self._rate = 1.0 if known and seconds else None
        self._spent: dict[Hashable, tuple[float, float]] = {}
        """By kind: seconds, and the cost that they went into."""
        self._kind, self._clock, self._begin = kind, clock, clock()

    def skip(self, part: Hashable, times: int = 1) -> None:
        """It was run before; time begins to count now."""
        self._left[part] -= times
        self._begin = self._clock()

    def finished(self, part: Hashable) -> None:
        """It has just ended."""
        now, kind = self._clock(), self._kind(part)
        seconds, cost = self._spent.get(kind, (0.0, 0.0))
        self._spent[kind] = seconds + now - self._begin, cost + self._cost[part]
        self._left[part] -= 1
        self._begin = now

    def seconds(self) -> float | None:
        """Seconds left, those of the running part that have passed taken off; ``None`` where nobody knows."""
        if not any(self._left.values()):
            return 0.0
        overall = self._rate
        if self._spent:
            overall = sum(took for took, _ in self._spent.values()) / sum(cost for _, cost in self._spent.values())
        if overall is None:
            return None
        total = 0.0
        for part, times in self._left.items():
            seconds, cost = self._spent.get(self._kind(part), (overall, 1.0))
            total += times * self._cost[part] * seconds / cost
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
