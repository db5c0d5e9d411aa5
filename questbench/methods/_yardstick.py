"""What oracle and random have in common: Quest's budget and lists, with page scores of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from questbench.errors import UsageError
from questbench.methods._base import CacheShape, Everything, Method, Pages, Selection

if TYPE_CHECKING:
    from torch import Tensor

    from questbench.cache import LayerCache
    from questbench.kernels._ops import Ops


@dataclass(frozen=True)
class PageYardstick(Method, ABC):
    """Selects pages as Quest's kernel variant does, by scores that no deployed method has."""

    yardstick: ClassVar[bool] = True

    @abstractmethod
    def page_scores(self, q: Tensor, layer: LayerCache) -> Tensor:
        """``[B, Hq, P]`` fp32."""

    def select(self, q: Tensor, layer: LayerCache, ops: Ops) -> Selection:
        """The newest page and the best others, one list per KV head."""
        pages = self.budget // layer.page_size
        if layer.page_table.shape[1] <= pages:
            return Everything()
        scores = self.page_scores(q, layer)
        lists, counts = ops.select(
            scores,
            layer.lengths,
            layer.page_size,
            pages,
            width=pages,
            force_newest=True,
            merge="max",
            group=q.shape[1] // layer.kv_heads,
        )
        return Pages(lists, counts)

    def check(self, page_size: int) -> None:
        """At least one whole page must fit the budget."""
        if self.budget < page_size:
            raise UsageError(
                f"{self.name} reads whole pages: budget {self.budget} is below one page of {page_size} tokens.",
                f"Use --budget {page_size} or more, or a smaller --page-size.",
            )

    def tokens_visible(self, length: int, page_size: int) -> int:
        """All while the text fits; else whole pages, the newest one as full as it is."""
        pages = self.budget // page_size
        newest = (length - 1) % page_size + 1
        return length if -(-length // page_size) <= pages else (pages - 1) * page_size + newest

    def bytes_read(self, length: int, shape: CacheShape) -> int:
        """What is attended, and the keys that are scored (half an entry each)."""
        attended = self.tokens_visible(length, shape.page_size)
        return shape.entry_bytes * attended + shape.entry_bytes // 2 * self.tokens_scored(length)

    def arguments(self, page_size: int) -> dict[str, object]:
        """Every parameter, with the budget floored to whole pages."""
        return super().arguments(page_size) | {"budget": self.budget // page_size * page_size}
