"""How large the last-level cache is, which a cold measurement must push out of the way, and how much memory is free."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from questbench import units
from questbench.errors import QuestbenchError
from questbench.measure import cgroup

FALLBACK_BYTES = 64 << 20
"""Assumed where the system does not tell; larger than the share of one process on most machines."""
UNTOLD = 1 << 60
"""Bytes taken to be free where the system does not tell: it decides by itself what fits."""
_CPUS = Path("/sys/devices/system/cpu")


def last_level_cache_bytes(device: str = "cpu", *, cpus: Path = _CPUS) -> int:
    """Bytes of the last-level cache that this process can use.

    On a CPU with several last-level caches, those of all cores that this process may run on are added up. On a CUDA
    device it is the L2 cache.

    Args:
        device: ``cpu`` or a CUDA device.
        cpus: folder that describes the CPUs; tests pass their own.
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    found: dict[tuple[int, str], int] = {}
    for cpu in allowed:
        for index in (cpus / f"cpu{cpu}" / "cache").glob("index*"):
            try:
                kind, level, shared, size = ((index / f).read_text().strip() for f in _FILES)
                if kind != "Instruction":
                    found[int(level), shared] = units.parse_count(size, what="cache size")
            except (OSError, ValueError, QuestbenchError):
                continue
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last) or FALLBACK_BYTES


def free_bytes(device: str = "cpu") -> int:
    """Bytes that can still be allocated.

    On a CPU that is what the system could give without swapping, the page cache included (``MemAvailable``), and no
    more than the control groups of this process allow.
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    free = _available()
    allowed = cgroup.memory_left()
    return free if allowed is None else min(free, allowed)


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory was not enough, on whatever device."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # The CPU allocator, and cuBLAS when it makes its workspace, raise a plain RuntimeError.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        mark in text for mark in ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
    )


def _available(file: Path = Path("/proc/meminfo")) -> int:
    if (kibibytes := cgroup.field(file, "MemAvailable")) is not None:
        return kibibytes * 1024
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return UNTOLD


_FILES = ("type", "level", "shared_cpu_list", "size")
