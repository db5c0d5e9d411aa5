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
        noise = []
        for length in layer.seen:
            generator = torch.Generator().manual_seed(derive(self.seed, layer.index, length))
            noise.append(torch.rand((layer.kv_heads, pages), generator=generator))
        scores = torch.stack(noise).to(q.device)
        return scores.repeat_interleave(heads // layer.kv_heads, dim=1).view(rows, heads, pages)
