"""The two layouts of page bounds: the per-channel maxima and minima of a page's keys.

By page, ``[N, Hk, 2, D]``: a page's maxima, then its minima. Any method can use it, and under GQA both are needed.

By channel, ``[ceil(N / 64), Hk, D, 2, 64]``: physical page n stands in block n // 64, lane n % 64. Only one of the two
bounds of a channel counts for one query (the maximum where q_d > 0, the minimum where q_d < 0), and here it can be read
without the other: half the bytes, exactly the same score. Open pages have no bounds in this layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questbench._memory import empty

LANES = 64
"""Pages of one block of the layout by channel (``kLanePages`` in paged.h)."""


def empty_bounds(
    pages: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, *, by_channel: bool
) -> Tensor:
    """Room for the bounds of ``pages`` physical pages, zeroed."""
    if by_channel:
        return empty((-(-pages // LANES), kv_heads, head_dim, 2, LANES), dtype, device)
    return empty((pages, kv_heads, 2, head_dim), dtype, device)


def is_by_channel(bounds: Tensor) -> bool:
    """Which of the two layouts this is."""
    return bounds.dim() == 5


def read_bounds(bounds: Tensor, pages: Tensor) -> Tensor:
    """Bounds of physical ``pages`` ``[n]`` as ``[n, Hk, 2, D]``."""
    if not is_by_channel(bounds):
        return bounds[pages]
    return bounds[pages // LANES, :, :, :, pages % LANES].transpose(2, 3)


def write_bounds(bounds: Tensor, page: int, values: Tensor) -> None:
    """Set the bounds of one physical page to ``[Hk, 2, D]``."""
    if is_by_channel(bounds):
        bounds[page // LANES, :, :, :, page % LANES] = values.transpose(1, 2)
    else:
        bounds[page] = values
