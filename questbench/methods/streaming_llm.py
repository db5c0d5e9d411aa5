"""StreamingLLM: attention sinks and a window (Xiao et al., ICLR 2024, https://arxiv.org/abs/2309.17453).

    keep = the first `sinks` entries + the newest budget - 1 - sinks

``positions="cache"`` re-indexes positions inside the cache, as the original does by storing keys unrotated. Here keys
stay rotated and the query is rotated back by (text position - cache position) for the sinks alone: window keys are at
the same distance in the cache as in the text, so only the sinks' logits change. Equal to the original up to rounding
for rotary embeddings whose frequencies do not change with the length. ``positions="text"`` is a plain mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from questbench.errors import CellError
from questbench.methods._base import Everything, Keep, Method, Selection, at_least

if TYPE_CHECKING:
    from torch import Tensor

    from questbench.cache import LayerCache
    from questbench.kernels._ops import Ops


@dataclass(frozen=True)
class StreamingLLM(Method):
    """Keeps the first few entries and a sliding window."""

    sinks: int = 4
    """Entries at the start of the text that are never dropped."""
    positions: Literal["cache", "text"] = "cache"
    """Positions count inside the cache (the paper), or in the text."""

    @property
    def needs_rotation(self) -> bool:
        """Positions in the cache need the model's rotary embedding."""
        return self.positions == "cache" and self.sinks > 0

    def select(self, q: Tensor, layer: LayerCache, ops: Ops) -> Selection:
        """Everything that is still there; the sinks as if they stood right before the window."""
        return self.reread(q, layer)

    def reread(self, q: Tensor, layer: LayerCache) -> Everything:
        """The same for all queries of a turn: they are equally far from their positions in the cache."""
        if not self.needs_rotation or (lag := layer.lag()) is None:
            return Everything()
        if layer.rotate is None:
            raise CellError(
                "streaming_llm with positions=cache needs the model's rotary embedding, and this model has none.",
                "Use -M streaming_llm.positions=text.",
            )
        rotated = layer.rotate(q, lag)
        return Everything(prefix_q=rotated.to(q.dtype), prefix=self.sinks)

    def keep_step(self) -> Keep:
        """Sinks and the window."""
        return Keep(self.budget - 1, sinks=self.sinks, recent=self.budget - 1 - self.sinks, by="age")

    def check(self, page_size: int) -> None:
        """The sinks, one window entry and the new one."""
        at_least(self, self.sinks + 2, f"{self.sinks} sinks, one window entry and the new one")
