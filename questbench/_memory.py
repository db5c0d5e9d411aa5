"""Large buffers for keys and values: zeroed, on huge pages where the system grants them on request.

A decode step touches 4 KB tiles all over a cache of hundreds of megabytes; with 4 KB system pages every tile costs a
page-table walk. Both the sparse and the dense arms allocate here, so none of them gains an edge by it.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import torch
from torch import Tensor

HUGE = 2 << 20


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A contiguous tensor of zeros.

    CPU buffers of 4 MiB and more come from an anonymous mapping that asks for huge pages; the tensor keeps it alive.
    """
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size < 2 * HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype, device=device)
    mapping = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(mapping, dtype=torch.uint8)
    start = -whole.data_ptr() % HUGE
    return whole[start : start + size].view(dtype).view(shape)


def move_to_huge_pages(model: Any) -> None:
    """Weights on a CPU lie like keys and values do, so that both are read at the same speed."""
    for parameter in model.parameters():
        if type(parameter.data) is Tensor and parameter.device.type == "cpu" and parameter.is_contiguous():
            moved = empty(tuple(parameter.shape), parameter.dtype)
            parameter.data = moved.copy_(parameter.data)
