"""How large the last-level cache is: what a cold measurement must push out of the way."""

from __future__ import annotations

import os
from pathlib import Path

from questbench import units
from questbench.errors import QuestbenchError

FALLBACK_BYTES = 64 << 20
"""Assumed where the system does not tell; larger than the share of one process on most machines."""
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


_FILES = ("type", "level", "shared_cpu_list", "size")
