"""Oracle: the pages that hold the largest q . k, found by reading every key. An upper mark for page selection.

A yardstick, not a method: it reads all keys to decide what to read (Quest, section 4.1, calls it oracle top-k).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from questbench.methods._yardstick import PageYardstick

if TYPE_CHECKING:
    from torch import Tensor

    from questbench.cache import LayerCache


@dataclass(frozen=True)
class Oracle(PageYardstick):
    """Reads the pages whose best key has the largest product with the query."""

    def page_scores(self, q: Tensor, layer: LayerCache) -> Tensor:
        """max over the page of q . k, exact in fp32."""
        import torch

        rows, heads, _ = q.shape
        pages = layer.page_table.shape[1]
        scores = torch.full((rows, heads, pages * layer.page_size), -torch.inf, device=q.device)
        for row in range(rows):
            keys = layer.keys(row).float().repeat_interleave(heads // layer.kv_heads, dim=0)
            scores[row, :, : layer.held[row]] = (keys @ q[row].float()[..., None])[..., 0]
        best: Tensor = scores.unflatten(2, (pages, layer.page_size)).amax(-1)
        return best

    def tokens_scored(self, length: int) -> int:
        """Every key is read to score the pages."""
        return length
