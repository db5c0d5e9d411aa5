"""The paged store of one layer, as every op that reads or writes entries is given it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Paged(NamedTuple):
    """Keys and values in pages, and where each row's pages lie. A view: ops write into the tensors that it names."""

    k: Tensor
    """``[N, Hk, S, D]``, fp32, fp16 or bf16, contiguous: keys, by physical page."""
    v: Tensor
    """``[N, Hk, S, D]``: values, stored alike."""
    table: Tensor
    """``[B, P]`` int32, logical page -> physical page; rows may be strided. Past a row's last page nothing is read."""
    lengths: Tensor
    """``[B]`` int32: entries of each row; slot t of row b lies in page ``table[b, t // S]`` at ``t % S``."""
    bounds: Tensor | None = None
    """Per-channel max (index 0) and min (index 1) of a page's keys, in the dtype of ``k`` and in one of two layouts
    (``_bounds.py``): by page ``[N, Hk, 2, D]``, or by channel ``[ceil(N / 64), Hk, D, 2, 64]``. ``None``: not kept."""

    @property
    def kv_heads(self) -> int:
        """Hk."""
        return self.k.shape[1]

    @property
    def page_size(self) -> int:
        """S."""
        return self.k.shape[2]

    @property
    def head_dim(self) -> int:
        """D."""
        return self.k.shape[3]

    @property
    def slots(self) -> int:
        """Slots that the page table spans."""
        return self.table.shape[1] * self.k.shape[2]
