"""Random keys and values, drawn once, for caches that are filled instead of prefilled."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

NOISE_BYTES = 64 << 20
"""Random entries are drawn once and laid end to end: drawing gigabytes would take longer than measuring them."""


class Noise:
    """Random keys and values for caches that are filled instead of prefilled."""

    def __init__(self, rows: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        tokens = max(NOISE_BYTES // (kv_heads * head_dim * dtype.itemsize), 1)
        self.rows = rows
        self._entries = torch.randn((1, kv_heads, min(tokens, 8192), head_dim), generator=generator).to(device, dtype)

    def parts(self, total: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values ``[B, Hk, n, D]`` until ``total`` entries are given."""
        width = self._entries.shape[2]
        for start in range(0, total, width):
            part = self._entries[:, :, : min(width, total - start)].expand(self.rows, -1, -1, -1)
            yield part, part.flip(-1)
