"""The peak of memory that a block of code reaches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from questbench.measure.cgroup import field

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """The largest memory during a block, above what was in use when it began; ``None`` where nobody tells."""

    rise: int | None = None


@contextlib.contextmanager
def peak(device: str) -> Iterator[Peak]:
    """Watch the block: allocated memory on a CUDA device, resident memory of the process on a CPU (Linux)."""
    found = Peak()
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        torch.cuda.synchronize(device)
        found.rise = int(torch.cuda.max_memory_allocated(device)) - before
        return
    start = _resident("VmRSS") if _reset_high_water() else None
    yield found
    high = _resident("VmHWM")
    if start is not None and high is not None:
        found.rise = max(high - start, 0)


def _reset_high_water() -> bool:
    """Let the kernel forget the highest resident memory so far; false where it does not let us."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _resident(name: str) -> int | None:
    kibibytes = field(_STATUS, name)
    return None if kibibytes is None else kibibytes * 1024
