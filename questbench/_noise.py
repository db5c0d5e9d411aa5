"""Random keys and values, drawn once, for caches that are filled instead of prefilled."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from questbench._memory import empty

NOISE_BYTES = 64 << 20
"""Random entries are drawn once and laid end to end: drawing gigabytes would take longer than measuring them."""
LONGEST = 8192
"""Entries that are drawn at most, unless more are asked for."""


class Noise:
    """Random keys and values, alike in every row.

    Args:
        most: entries to draw at most; a longer text repeats them.
    """

    def __init__(
        self,
        rows: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: str,
        generator: torch.Generator,
        most: int = LONGEST,
    ) -> None:
        tokens = max(min(NOISE_BYTES // (kv_heads * head_dim * dtype.itemsize), most), 1)
        self.rows, self.kv_heads, self.head_dim, self.dtype, self.device = rows, kv_heads, head_dim, dtype, device
        self._entries = torch.randn((1, kv_heads, tokens, head_dim), generator=generator).to(dtype).to(device)
        self._values = self._entries.flip(-1)

    def parts(self, total: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values ``[B, Hk, n, D]`` until ``total`` entries are given."""
        width = self._entries.shape[2]
        for start in range(0, total, width):
            count = min(width, total - start)
            yield tuple(x[:, :, :count].expand(self.rows, -1, -1, -1) for x in (self._entries, self._values))  # type: ignore[misc]

    def whole(self, total: int, group: int = 1) -> tuple[Tensor, Tensor]:
        """All of it in one piece, ``[B, Hk * group, total, D]``: each KV head ``group`` times."""
        size = (self.rows, self.kv_heads * group, total, self.head_dim)
        stored = empty(size, self.dtype, self.device), empty(size, self.dtype, self.device)
        done = 0
        for parts in self.parts(total):
            for whole, part in zip(stored, parts, strict=True):
                whole[:, :, done : done + part.shape[2]] = part.repeat_interleave(group, dim=1) if group > 1 else part
            done += parts[0].shape[2]
        return stored
