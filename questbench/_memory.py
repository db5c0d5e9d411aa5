"""Large buffers for keys and values: zeroed, on huge pages where the system grants them on request.

A decode step touches 4 KB tiles all over a cache of hundreds of megabytes; with 4 KB system pages every tile costs a
page-table walk. Both the sparse and the dense arms allocate here, so none of them gains an edge by it.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

HUGE = 2 << 20
LINE = 64
BLOCK = 32 << 20
"""Bytes of small weights that lie in one buffer: little is held for a single one that outlives its neighbours."""


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
    """Weights on a CPU lie like keys and values do, so that both are read at the same speed.

    Those too small for huge pages of their own share some with their neighbours: in a model of 135 million parameters
    that is every layer's.
    """
    small: list[Any] = []
    held = 0
    for parameter in model.parameters():
        if type(parameter.data) is not Tensor or parameter.device.type != "cpu" or not parameter.is_contiguous():
            continue
        if parameter.nbytes >= 2 * HUGE:
            parameter.data = empty(tuple(parameter.shape), parameter.dtype).copy_(parameter.data)
        else:
            small.append(parameter)
            held += _room(parameter)
            if held >= BLOCK:
                _move_together(small)
                small, held = [], 0
    _move_together(small)


def _move_together(parameters: Sequence[Any]) -> None:
    """Into one buffer, in this order."""
    block, at = empty((sum(map(_room, parameters)),), torch.uint8), 0
    for parameter in parameters:
        own = block[at : at + parameter.nbytes].view(parameter.dtype).view(parameter.shape)
        parameter.data = own.copy_(parameter.data)
        at += _room(parameter)


def _room(parameter: Any) -> int:
    """Bytes of a parameter, up to the next line of the cache."""
    return -(-int(parameter.nbytes) // LINE) * LINE
