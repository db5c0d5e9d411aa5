"""Interleaved timing: every round times every arm once, so that a disturbance hits all of them alike.

The clock is read once before and once after a handful of calls; between the two there is a Python loop and nothing
else. Setting up, garbage collection, statistics and progress all happen outside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from questbench.errors import UsageError
from questbench.measure.order import relative_noise
from questbench.measure.stopping import Stop, StoppingRule
from questbench.seeding import generator

if TYPE_CHECKING:
    import torch

FLOOR = 200e-6
"""Seconds: a shorter call is timed several at a time, so that neither clock nor loop shows (well below 0.1 %)."""
CALLS_MAX = 64
"""Calls per timing at most: an arm whose cache grows needs room for this many steps between two set-ups."""
PROGRESS_EVERY = 0.2


class Arm(Protocol):
    """Something to time."""

    def setup(self) -> None:
        """Before every timing, untimed: undo what the last calls changed."""

    def step(self, index: int, /) -> object:
        """One call. ``index`` never repeats: use it to take another query and another copy of the data."""


class Stopwatch(Protocol):
    """How seconds are taken."""

    def measure(self, step: Callable[[int], object], first: int, count: int) -> float:
        """Seconds for ``step(first), ..., step(first + count - 1)`` together."""


class WallClock:
    """Seconds on this machine's monotonic clock.

    Args:
        clock: returns seconds; tests pass their own.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock

    def measure(self, step: Callable[[int], object], first: int, count: int) -> float:
        """See :class:`Stopwatch`."""
        clock = self.clock
        indices = range(first, first + count)
        start = clock()
        for index in indices:
            step(index)
        return clock() - start


class CudaEvents:
    """Seconds between two events on the current CUDA stream.

    Args:
        device: the CUDA device; the current one by default.
    """

    AHEAD = 4_000_000
    """Clock cycles (about 2 ms) that the device is kept busy while the calls are queued: without them the gap
    between the first event and the first launch would be timed as well. A graph of hundreds of kernels takes the
    better part of a millisecond to launch."""

    def __init__(self, device: torch.device | str | None = None) -> None:
        import torch

        self._cuda: Any = torch.cuda
        self._device = device
        with self._cuda.device(device):
            self._begin, self._end = (self._cuda.Event(enable_timing=True) for _ in "be")

    def measure(self, step: Callable[[int], object], first: int, count: int) -> float:
        """See :class:`Stopwatch`."""
        with self._cuda.device(self._device):
            self._cuda.synchronize()
            self._cuda._sleep(self.AHEAD)
            self._begin.record()
            for index in range(first, first + count):
                step(index)
            self._end.record()
            self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) * 1e-3


def stopwatch(device: str) -> CudaEvents | None:
    """How eager calls on a device are timed; ``None`` for the wall clock."""
    return CudaEvents(device) if device.startswith("cuda") else None


@dataclasses.dataclass(frozen=True)
class Samples:
    """What timing one arm gave."""

    seconds: list[float]
    """Seconds per call, one entry per round; entry r of every arm was taken in the same round."""
    calls: int
    """Calls per timing; each entry of ``seconds`` is their mean."""
    stopped: Stop
    """Why timing ended, alike for all arms of a run."""

    @property
    def noise(self) -> float:
        """Relative noise of the median."""
        return relative_noise(self.seconds)


def interleave(
    arms: Mapping[str, Arm],
    *,
    rounds_min: int = 20,
    rounds_max: int = 400,
    target_noise: float = 0.01,
    max_seconds: float = 10.0,
    shuffle_seed: int = 0,
    on_progress: Callable[[str], Any] | None = None,
    stopwatch: Stopwatch | None = None,
    now: Callable[[], float] = time.perf_counter,
    floor: float = FLOOR,
    calls_max: int = CALLS_MAX,
    warm: bool = False,
) -> dict[str, Samples]:
    """Time all arms in rounds, each arm once per round, in an order shuffled anew for every round.

    Args:
        rounds_min: see :class:`~questbench.measure.stopping.StoppingRule`, as for the next three.
        max_seconds: of timed rounds; warming up is not counted.
        shuffle_seed: same seed, same orders.
        on_progress: told a short sentence now and then, between rounds.
        stopwatch: the wall clock unless given.
        now: seconds, for ``max_seconds`` and progress.
        floor: seconds that one timing should last at least.
        calls_max: calls per timing at most, whatever ``floor`` says.
        warm: the arms have run before and one call is one timing: they are called once beforehand, not four times.

    Returns:
        Samples by name, in the order of ``arms``.

    Raises:
        UsageError: no arms, or the numbers of rounds make no range.
    """
    if not arms:
        raise UsageError("There is nothing to time.", "Name at least one method.")
    rule = StoppingRule(rounds_min, rounds_max, target_noise, max_seconds)
    watch = stopwatch or WallClock(now)
    lanes = [_Lane(arm, watch) for arm in arms.values()]
    order = list(lanes)
    shuffle = generator(shuffle_seed, "interleave").shuffle
    with _no_collection():
        for lane in lanes:
            lane.time() if warm else lane.warm_up(floor, calls_max)
        begin = told = now()
        rounds, stopped = 0, None
        while stopped is None:
            shuffle(order)
            for lane in order:
                lane.seconds.append(lane.time())
            rounds += 1
            moment = now()
            stopped = rule.decide((lane.seconds for lane in lanes), rounds, moment - begin)
            if on_progress is not None and moment - told >= PROGRESS_EVERY:
                told = moment
                on_progress(_estimate(rounds, max(relative_noise(lane.seconds) for lane in lanes)))
    return {name: Samples(lane.seconds, lane.calls, stopped) for name, lane in zip(arms, lanes, strict=True)}


class _Lane:
    """One arm, its running index and its samples."""

    def __init__(self, arm: Arm, watch: Stopwatch) -> None:
        self.arm, self.watch = arm, watch
        self.index, self.calls = 0, 1
        self.seconds: list[float] = []

    def time(self) -> float:
        """Seconds per call of one timing."""
        self.arm.setup()
        first, self.index = self.index, self.index + self.calls
        return self.watch.measure(self.arm.step, first, self.calls) / self.calls

    def warm_up(self, floor: float, calls_max: int) -> None:
        """Builds, first touches and clock ramps end here; the second and third calls tell how many make a timing."""
        self.time()
        once = min(self.time(), self.time())
        self.calls = calls_max if once * calls_max <= floor else min(max(1, math.ceil(floor / once)), calls_max)
        self.time()


def _estimate(rounds: int, noise: float) -> str:
    return f"round {rounds}" if math.isinf(noise) else f"round {rounds}, medians known to {noise:.1%}"


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection inside; as before afterwards, also when interrupted."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
