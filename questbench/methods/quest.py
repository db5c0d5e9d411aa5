"""Quest: query-aware page selection (Tang et al., ICML 2024, https://arxiv.org/abs/2406.10774).

    score(page) = sum_d max(q_d * max_d, q_d * min_d)      section 3.3: an upper bound of q . k over the page's keys
    read        = the pages with the best scores           section 3.4, Algorithm 1

Nothing is ever dropped: Quest saves traffic, not memory.

Deviations, all recorded with every result:
    select_by="kv_head" (default of the kernel variant) gives the query heads that share a KV head one list, merged as
    the sum of softmax over pages of (scale * score), so that equal budget means equal traffic under GQA. The paper
    knows multi-head attention only, where both are the same. group_merge="max" is the alternative.
    variant="kernel" follows the released kernels: dense while the text fits the budget; the newest page is always
    read and not scored. variant="eval" follows the released accuracy code: no page is protected, never fewer than
    three pages (whatever the budget), and a text shorter than the budget may still lose a page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from questbench.errors import UsageError
from questbench.methods._base import CacheShape, Method, Selection, TopPages

if TYPE_CHECKING:
    from torch import Tensor

    from questbench.cache import LayerCache
    from questbench.kernels._ops import Merge, Ops


@dataclass(frozen=True)
class Quest(Method):
    """Reads the pages whose key bounds promise the largest products with the query."""

    variant: Literal["kernel", "eval"] = "kernel"
    """The released kernels' rules, or the released accuracy code's."""
    select_by: Literal["auto", "kv_head", "q_head"] = "auto"
    """Whose list of pages: one per KV head, or one per query head. ``auto``: kv_head, but q_head in ``eval``."""
    group_merge: Literal["sum_softmax", "max"] = "sum_softmax"
    """How the query heads of a KV head agree, where they share a list."""

    def select(self, q: Tensor, layer: LayerCache, ops: Ops) -> Selection:
        """The best ``budget // S`` pages."""
        merge: Merge = "none" if self._per_query_head else self.group_merge
        size = layer.page_size
        if self.variant == "kernel":
            pages = self.budget // size
            return TopPages(pages, min(pages, layer.page_table.shape[1]), force_newest=True, merge=merge)
        count = (layer.lengths.clamp(max=self.budget) // size).clamp(min=3)
        count = count.minimum((layer.lengths + size - 1) // size)
        # Not by the host's count of entries: a step that a graph replays must find room at every length.
        width = min(max(3, self.budget // size), layer.page_table.shape[1])
        return TopPages(count, width, force_newest=False, merge=merge)

    @property
    def needs_bounds(self) -> Literal["closed", "all"]:
        """The accuracy code ranks the newest page like the others; the kernels always read it."""
        return "all" if self.variant == "eval" else "closed"

    def check(self, page_size: int) -> None:
        """At least one whole page must fit the budget, but for ``eval``, which reads three pages at any budget."""
        if self.variant == "kernel" and self.budget < page_size:
            raise UsageError(
                f"Quest reads whole pages: budget {self.budget} is below one page of {page_size} tokens.",
                f"Use --budget {page_size} or more, or a smaller --page-size.",
            )

    def tokens_visible(self, length: int, page_size: int) -> int:
        """All while the text fits; else whole pages, the newest one as full as it is."""
        newest = (length - 1) % page_size + 1
        if self.variant == "kernel":
            pages = self.budget // page_size
            return length if -(-length // page_size) <= pages else (pages - 1) * page_size + newest
        # Upper limit: if the partial newest page is not selected, a full one stands in its place.
        return min(length, self._eval_pages(length, page_size) * page_size)

    def bytes_read(self, length: int, shape: CacheShape) -> int:
        """Bounds of the scored pages, and the entries of the selected ones (the union over the group's heads)."""
        visible = self.tokens_visible(length, shape.page_size)
        pages = -(-length // shape.page_size)
        if visible == length:
            scored = 0 if self.variant == "kernel" else pages
            return shape.entry_bytes * (length + scored)
        group = shape.query_heads // shape.kv_heads if self._per_query_head else 1
        scored = pages - int(self.needs_bounds == "closed")
        # The bounds of a page, one maximum and one minimum vector, weigh as much as one entry's key and value; where
        # a KV head has one query head, only one bound of each channel counts and only that is read.
        halves = 1 if shape.query_heads == shape.kv_heads and self.needs_bounds == "closed" else 2
        return shape.entry_bytes * min(length, group * visible) + shape.entry_bytes * scored * halves // 2

    def arguments(self, page_size: int) -> dict[str, object]:
        """Every parameter, with the budget as it takes effect: whole pages, three at least in ``eval``."""
        return {
            "budget": max(self.budget // page_size, 3 if self.variant == "eval" else 0) * page_size,
            "variant": self.variant,
            "select_by": "q_head" if self._per_query_head else "kv_head",
            "group_merge": self.group_merge,
        }

    @property
    def _per_query_head(self) -> bool:
        return self.select_by == "q_head" or (self.select_by == "auto" and self.variant == "eval")

    def _eval_pages(self, length: int, page_size: int) -> int:
        return min(max(3, min(length, self.budget) // page_size), -(-length // page_size))
