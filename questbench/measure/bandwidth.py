"""The read bandwidth of this machine, measured in the same rounds as what it is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from questbench._memory import empty
from questbench.errors import PrerequisiteError
from questbench.measure.memory import last_level_cache_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from questbench.measure._reader import Reader

CACHES = 4
"""The buffer is this many last-level caches large, so that at most a small part of a pass can come from them."""
BYTES_LEAST = {"cpu": 128 << 20, "cuda": 1 << 30}
"""Below this, waking the threads or launching the kernel would show."""


class ReadProbe:
    """An arm that reads a large buffer once per step, as fast as plain reads go.

    A compiled reader (``kernels/probe/read.cpp``) is used where a compiler is at hand, and torch's sum otherwise, which
    reaches about nine tenths of it or more: fractions of its bandwidth may then come out a little high. A CUDA buffer
    is read by torch.

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
        """``compiled`` or ``torch``."""
        self.reason: str | None = None
        """Why the compiled reader is not used, where it could be."""
        # Written once: pages never written all share one page of zeros, which a cache would hold.
        self._data: Tensor = empty((self.bytes // 8,), torch.float64, device).fill_(1.0)
        self._reader: Reader | None = None
        if kind == "cpu":
            self._load(threads or self.threads)

    def setup(self) -> None:
        """Nothing changes."""

    def step(self, index: int) -> object:
        """Read the whole buffer once."""
        if self._reader is None:
            return self._data.sum()
        return self._reader(self._data.data_ptr(), self.bytes)

    def _load(self, threads: int) -> None:
        from questbench.measure._reader import Reader

        try:
            self._reader = Reader(threads)
            self.probe, self.threads = "compiled", threads
        except PrerequisiteError as error:
            self.reason = error.message
