"""Random: pages drawn without looking. A lower mark: a method that is no better selects nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from questbench.methods._yardstick import PageYardstick

if TYPE_CHECKING:
    from torch import Tensor

    from questbench.cache import LayerCache


@dataclass(frozen=True)
class Random(PageYardstick):
    """Reads the newest page and others at random, new ones in every step."""

    seed: int = 0
    """Seed of the draw; the draw depends on it, the layer and the text length only."""

    def page_scores(self, q: Tensor, layer: LayerCache) -> Tensor:
        """Uniform noise, the same for all query heads of a KV head."""
        import torch

        from questbench.seeding import derive

        rows, heads, pages = q.shape[0], q.shape[1], layer.page_table.shape[1]
        scores = torch.zeros((rows, layer.kv_heads, pages))
        for row, length in enumerate(layer.seen):
            own = -(-layer.held[row] // layer.page_size)  # Not the longest row's: neighbours must not matter.
            generator = torch.Generator().manual_seed(derive(self.seed, layer.index, length))
            scores[row, :, :own] = torch.rand((layer.kv_heads, own), generator=generator)
        return scores.to(q.device).repeat_interleave(heads // layer.kv_heads, dim=1)
