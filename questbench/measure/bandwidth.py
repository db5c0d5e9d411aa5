"""The read bandwidth of this machine, measured in the same rounds as what it is compared with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from questbench._memory import empty
from questbench.errors import PrerequisiteError
from questbench.measure.memory import last_level_cache_bytes
from questbench.measure.timer import CudaEvents, Stopwatch, WallClock

if TYPE_CHECKING:
    from torch import Tensor

    from questbench.measure._reader import Reader

CACHES = 4
"""The buffer is this many last-level caches large, so that at most a small part of a pass can come from them."""
BYTES_LEAST = {"cpu": 128 << 20, "cuda": 1 << 30}
"""Below this, waking the threads or launching the kernel would show."""
TRIALS = 9
"""Reads of each kind before the faster is chosen."""
ADVANTAGE = 0.05
"""How much faster torch must be: its threads keep spinning for a while after a sum, which the next arm would feel."""


class ReadProbe:
    """An arm that reads a large buffer once per step, as fast as plain reads go.

    A compiled reader (``kernels/probe/read.cpp``) is used where there is a compiler, unless torch's sum turns out to be
    faster on this machine. Torch alone may miss part of the bandwidth, and fractions of what it finds then come out a
    little high. On a GPU it is torch's sum or a copy (bytes read and written), whichever moves more.

    Args:
        size: bytes of the buffer; at least 4 last-level caches and 128 MiB (1 GiB on a GPU) unless given.
        threads: threads that read; torch's number unless given. Torch's own sum always takes torch's number.
        device: ``cpu`` or a CUDA device.
    """

    def __init__(self, size: int | None = None, threads: int | None = None, device: str = "cpu") -> None:
        import torch

        kind = torch.device(device).type
        wanted = size or max(CACHES * last_level_cache_bytes(device), BYTES_LEAST.get(kind, 0))
        self.bytes = -(-wanted // 4096) * 4096
        """Bytes that one step reads."""
        self.threads = torch.get_num_threads()
        """Threads that read; without meaning on a GPU."""
        self.probe = "torch"
        """``compiled``, ``torch`` or ``copy``."""
        self.reason: str | None = None
        """Why the compiled reader is not used on a CPU."""
        # Written once: pages never written all share one page of zeros, which a cache would hold.
        self._data: Tensor = empty((self.bytes // 8,), torch.float64, device).fill_(1.0)
        self._reader: Reader | None = None
        self._target: Tensor | None = None
        if kind == "cpu":
            self._choose(threads or self.threads)
        elif kind == "cuda":
            self._choose_copy(CudaEvents(device))

    def setup(self) -> None:
        """Nothing changes."""

    def step(self, index: int) -> object:
        """Read the whole buffer once."""
        if self._target is not None:
            return self._copy(index)
        return self._by_torch(index) if self._reader is None else self._compiled(index)

    def _copy(self, index: int) -> object:
        assert self._target is not None
        return self._target.copy_(self._data[: self._target.shape[0]])

    def _choose_copy(self, watch: Stopwatch) -> None:
        """Keep a copy of half the buffer, which moves as many bytes as reading all of it, if it is the faster."""
        half = self._data[: self._data.shape[0] // 2]
        self._target = half.new_empty(half.shape)
        copied, read = math.inf, math.inf
        for index in range(TRIALS):
            copied = min(copied, watch.measure(self._copy, index, 1))
            read = min(read, watch.measure(self._by_torch, index, 1))
        if copied < read:
            self.probe = "copy"
        else:
            self._target = None

    def _by_torch(self, index: int) -> object:
        return self._data.sum()

    def _compiled(self, index: int) -> object:
        assert self._reader is not None
        return self._reader(self._data.data_ptr(), self.bytes)

    def _choose(self, threads: int) -> None:
        """Build the compiled reader and keep it unless torch is clearly faster."""
        from questbench.measure._reader import Reader

        try:
            self._reader = Reader(threads)
        except PrerequisiteError as error:
            self.reason = error.message
            return
        watch, compiled, torch_sum = WallClock(), math.inf, math.inf
        for index in range(TRIALS):
            # The best of each: what the memory can do, whatever else the machine was doing.
            compiled = min(compiled, watch.measure(self._compiled, index, 1))
            torch_sum = min(torch_sum, watch.measure(self._by_torch, index, 1))
        if compiled > (1 + ADVANTAGE) * torch_sum:
            self._reader = None
            self.reason = f"torch's sum reads {compiled / torch_sum - 1:.0%} faster than the compiled reader here."
        else:
            self.probe, self.threads = "compiled", threads


def copy_bandwidth(device: str, watch: Stopwatch | None = None, size: int | None = None) -> float:
    """Bytes per second, read and written, that a copy within the memory of ``device`` moves: the best of a few.

    Args:
        device: where.
        watch: CUDA events, or the wall clock on a CPU, unless given.
        size: bytes of the buffer copied; as :class:`ReadProbe` unless given.
    """
    import torch

    kind = torch.device(device).type
    size = size or max(CACHES * last_level_cache_bytes(device), BYTES_LEAST.get(kind, 0))
    source = empty((size // 8,), torch.float64, device).fill_(1.0)
    target = empty((size // 8,), torch.float64, device).fill_(0.0)
    watch = watch or (CudaEvents(device) if kind == "cuda" else WallClock())

    def step(index: int) -> object:
        return target.copy_(source)

    step(0)
    return 2 * source.nbytes / min(watch.measure(step, index, 1) for index in range(TRIALS))
