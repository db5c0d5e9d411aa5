"""Dense attention: every query reads every entry. The method the others are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from questbench.methods._base import CacheShape, Everything, Method, Selection

if TYPE_CHECKING:
    from torch import Tensor

    from questbench.cache import LayerCache
    from questbench.kernels._ops import Ops


@dataclass(frozen=True)
class Dense(Method):
    """Reads all, keeps all; the budget is ignored."""

    budgeted: ClassVar[bool] = False

    def select(self, q: Tensor, layer: LayerCache, ops: Ops) -> Selection:
        """Everything."""
        return Everything()

    def tokens_visible(self, length: int, page_size: int) -> int:
        """All of them."""
        return length

    def bytes_read(self, length: int, shape: CacheShape) -> int:
        """Keys and values of all entries."""
        return shape.entry_bytes * length

    def arguments(self, page_size: int) -> dict[str, object]:
        """Dense has no parameters."""
        return {}
