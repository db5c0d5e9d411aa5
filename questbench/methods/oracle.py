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
        scores = torch.full((rows, heads, layer.page_table.shape[1]), -torch.inf, device=q.device)
        grouped = q.float().unflatten(1, (layer.kv_heads, -1)).transpose(2, 3)
        best = scores.unflatten(1, (layer.kv_heads, -1))
        for row in range(rows):
            for first, keys in layer.key_pages(row):
                count = keys.shape[0]
                left = max(layer.held[row] - first * layer.page_size, 0)
                for head in range(layer.kv_heads):
                    # Page by page, so that no key is copied.
                    products = torch.bmm(keys[:, head].float(), grouped[row, head].expand(count, -1, -1))
                    products.flatten(0, 1)[left:] = -torch.inf
                    best[row, head, :, first : first + count] = products.amax(1).T
        return scores

    def tokens_scored(self, length: int) -> int:
        """Every key is read to score the pages."""
        return length
