"""How arms of the kernel experiment are timed: by the wall clock on a CPU, by events or graph replay on a GPU.

On a GPU a step of some 15 us is shorter than the launches of its kernels take from Python, so that ``graph`` records
several steps, over all copies in turn, in one CUDA graph and times its replay: as a model's layers would run.
``events`` times the eager calls, as they are. Before every timing the L2 cache is filled with something else.
"""

from __future__ import annotations

import dataclasses
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from questbench.errors import first_line
from questbench.experiments.kernel.arms import QUERIES, LayerShape
from questbench.experiments.staged import Marks, StageClock, summed
from questbench.measure import timer
from questbench.measure.bandwidth import CACHES
from questbench.measure.cautions import Caution
from questbench.measure.memory import last_level_cache_bytes, out_of_memory

HOST_TIMING = 5e-3
"""Least seconds of one timing on a CPU. A shorter step is repeated, over other cache copies and with other queries:
data stays cold, while the interpreter, which the previous arm swept out of the caches, gets warm again."""
GRAPH_SECONDS = 1e-3
"""What one replay should last, going by the bytes that a step must read ..."""
STEP_SECONDS = 10e-6
"""... and this much for its launches."""
STEPS_MAX = 64
STAGE_AHEAD = 4_000_000
"""Clock cycles (about 2 ms) that the device is kept busy while a staged step is queued from Python."""


class CopyArm(timer.Arm, Protocol):
    """An arm over several copies of its data, used in turn."""

    @property
    def copies(self) -> int:
        """How many."""
        ...


class Clock(ABC):
    """Times arms in interleaved rounds."""

    name: str
    """``params.timing`` of the records; empty on a CPU, where there is one way."""

    @abstractmethod
    def interleave(self, arms: Mapping[str, Any], traffic: Mapping[str, int], **options: Any) -> dict[str, Any]:
        """As :func:`questbench.measure.timer.interleave`.

        Args:
            traffic: bytes that one step of an arm reads; arms without are timed as they are.
        """

    @abstractmethod
    def stages(self) -> StageClock:
        """A clock for stages."""

    def notes(self, name: str) -> list[str]:
        """Warnings about how an arm was timed."""
        del name
        return []


class HostStages:
    """Stages by the wall clock."""

    def begin(self) -> None:
        """Nothing to prepare."""

    def mark(self) -> float:
        """Seconds."""
        return time.perf_counter()

    def seconds(self, marks: Marks) -> dict[str, float]:
        """See :class:`StageClock`."""
        return summed((stage, after - before) for stage, before, after in marks)


class HostClock(Clock):
    """The wall clock."""

    name = ""

    def interleave(self, arms: Mapping[str, Any], traffic: Mapping[str, int], **options: Any) -> dict[str, Any]:
        """See :class:`Clock`."""
        return timer.interleave(arms, floor=HOST_TIMING, **options)

    def stages(self) -> StageClock:
        """See :class:`Clock`."""
        return HostStages()


class DeviceStages:
    """Stages by events; the device waits until a step is queued, so that no stage waits for Python."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda

    def begin(self) -> None:
        """Keep the device busy for a while."""
        self._cuda.synchronize()
        self._cuda._sleep(STAGE_AHEAD)

    def mark(self) -> Any:
        """An event on the current stream."""
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: Marks) -> dict[str, float]:
        """See :class:`StageClock`."""
        self._cuda.synchronize()
        return summed((stage, before.elapsed_time(after) * 1e-3) for stage, before, after in marks)


class GraphArm:
    """``steps`` steps of an arm, recorded once; each call replays all of them.

    Args:
        arm: what to record.
        steps: steps per replay.
        record: turns a callable that queues work into one that queues it again; tests pass their own.
        flush: fills the cache with something else before each timing; ``None`` to have it warm instead.
    """

    def __init__(
        self,
        arm: CopyArm,
        steps: int,
        record: Callable[[Callable[[], None]], Callable[[], None]],
        flush: Callable[[], object] | None,
    ) -> None:
        self.arm, self.steps, self.flush = arm, steps, flush
        # First each copy grows as far as it will: no page is allocated and nothing is compiled while recording. Two
        # steps are the least, after which an evicting cache is in its steady state.
        arm.setup()
        for index in range(arm.copies * max(2, -(-steps // arm.copies))):
            arm.step(index)
        arm.setup()
        self._replay = record(self._all)
        arm.setup()

    def _all(self) -> None:
        for index in range(self.steps):
            self.arm.step(index)

    def setup(self) -> None:
        """Back to the start, with the cache cold or warm."""
        if self.flush is None:
            self.arm.setup()
            self._replay()
        self.arm.setup()
        if self.flush is not None:
            self.flush()

    def step(self, index: int) -> object:
        """All the steps again."""
        self._replay()
        return None


class EventArm:
    """An arm whose timings begin with a cold cache."""

    def __init__(self, arm: Any, flush: Callable[[], object] | None) -> None:
        self.arm, self.flush, self.steps = arm, flush, 1

    def setup(self) -> None:
        """The arm's, then the cache is filled with something else."""
        self.arm.setup()
        if self.flush is not None:
            self.flush()

    def step(self, index: int) -> object:
        """The arm's."""
        return self.arm.step(index)


class DeviceClock(Clock):
    """CUDA events around eager calls or around the replay of a graph.

    Args:
        shape: names the device.
        timing: ``events`` or ``graph``.
        cold: whether the cache is filled with something else before each timing.
        bandwidth: bytes per second of the device, to choose how many steps a graph holds.
    """

    def __init__(self, shape: LayerShape, timing: str, *, cold: bool, bandwidth: float) -> None:
        self.name, self.bandwidth = timing, bandwidth
        self._watch = timer.CudaEvents(shape.device)
        self._flush = Flush(shape.device) if cold else None
        self._pool = torch.cuda.graph_pool_handle() if timing == "graph" else None
        # What a backend keeps for a stream (scratch, counters) must exist before a capture on it begins.
        self._stream = torch.cuda.Stream(shape.device)
        self._eager: dict[str, str] = {}

    def interleave(self, arms: Mapping[str, Any], traffic: Mapping[str, int], **options: Any) -> dict[str, Any]:
        """See :class:`Clock`."""
        wrapped = {name: self._wrap(name, arm, traffic.get(name)) for name, arm in arms.items()}
        # A graph is as long as it should be, and one call of an eager arm is one timing: caches must not outgrow
        # what was recorded.
        floor = 0.0 if self._pool is not None else timer.FLOOR
        timed = timer.interleave(wrapped, stopwatch=self._watch, floor=floor, calls_max=QUERIES, **options)
        return {
            name: dataclasses.replace(samples, seconds=[value / wrapped[name].steps for value in samples.seconds])
            for name, samples in timed.items()
        }

    def stages(self) -> StageClock:
        """See :class:`Clock`."""
        return DeviceStages(torch.cuda)

    def notes(self, name: str) -> list[str]:
        """An arm that could not be recorded."""
        return [Caution.EAGER.text(why=self._eager[name])] if name in self._eager else []

    def _wrap(self, name: str, arm: Any, traffic: int | None) -> GraphArm | EventArm:
        if traffic is None:
            return EventArm(arm, None)
        if self._pool is not None:
            try:
                torch.cuda.synchronize()
                with torch.cuda.stream(self._stream):
                    made = GraphArm(arm, graph_steps(traffic, self.bandwidth), self._record, self._flush)
                torch.cuda.synchronize()
                return made
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                self._eager[name] = first_line(error)
                torch.cuda.synchronize()
        return EventArm(arm, self._flush)

    def _record(self, work: Callable[[], None]) -> Callable[[], None]:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            work()
        replay: Callable[[], None] = graph.replay
        return replay


class Flush:
    """Reads a buffer of several L2 caches: reads leave clean lines, so that nothing is written back while timing."""

    def __init__(self, device: str) -> None:
        self._data = torch.ones(CACHES * last_level_cache_bytes(device) // 4, dtype=torch.float32, device=device)

    def __call__(self) -> object:
        """Queue the read."""
        return self._data.sum()


def graph_steps(traffic: int, bandwidth: float) -> int:
    """Steps of one graph: enough to last a millisecond, as far as bytes and launches tell, and no more than 64."""
    return min(max(math.ceil(GRAPH_SECONDS / (traffic / bandwidth + STEP_SECONDS)), 1), STEPS_MAX)
