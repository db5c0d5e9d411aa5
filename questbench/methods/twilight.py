"""Twilight: as many entries as hold a share p of the attention mass (Lin et al., 2025, https://arxiv.org/abs/2502.02770).

    candidates = the pages that Quest would read with budget B0            section 4.1: the token selector
    w          = softmax(scale * q . k4)  over the candidates' entries     k4: keys in four bits, min/max per token
    read       = the fewest entries whose w sums to p or more              section 3: top-p instead of top-k

Nothing is dropped. ``budget`` is B0: no head ever sees more, and how much less is up to the data, per KV head and step.
The default of ``p`` is that of the released settings.

Deviations, all recorded with every result:
    select_by="kv_head" (default) prunes once for the query heads that share a KV head, by the mean of their softmax.
    The paper's code repeats keys, so that every query head has a set of its own: that is ``q_head``.
    Quest follows its kernels (see quest.py): the newest page is always a candidate, and all pages are while the text
    fits the budget. The released code ranks the newest page like the others.
    The set is exact (ops ``estimate`` and ``prune``): the released search stops within 1e-5 and starts at the weight of
    the first token, which drops everything heavier than it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from questbench.errors import UsageError
from questbench.kernels._codes import code_bytes, empty_codes
from questbench.methods._base import CacheShape, Method, Selection, State, TopMass, TopPages
from questbench.methods.quest import Quest

if TYPE_CHECKING:
    from torch import Tensor

    from questbench.cache import LayerCache
    from questbench.kernels._ops import Ops


class Codes(State):
    """Keys of a layer in four bits, by slot."""

    def __init__(self, layer: LayerCache) -> None:
        slots = layer.pages.table.shape[1] * layer.page_size
        self.codes, self.ranges = empty_codes(layer.rows, layer.kv_heads, slots, layer.head_dim, layer.device)
        if any(layer.held):
            self.appended(layer, layer.held)

    def appended(self, layer: LayerCache, new: Sequence[int]) -> None:
        """Codes of the new entries."""
        most = max(new)
        uneven = None if min(new) == most else layer.lengths.new_tensor(list(new))
        layer.ops.quantize(layer.paged, self.codes, self.ranges, most, uneven)

    def fit(self, layer: LayerCache, slots: int) -> None:
        """More slots, zeros."""
        if slots > self.codes.shape[2]:
            grown = empty_codes(layer.rows, layer.kv_heads, slots, layer.head_dim, layer.device)
            for wide, own in zip(grown, (self.codes, self.ranges), strict=True):
                wide[:, :, : own.shape[2]] = own
            self.codes, self.ranges = grown

    def fork(self, layer: LayerCache) -> Codes:
        """A copy."""
        twin = Codes.__new__(Codes)
        twin.codes, twin.ranges = self.codes.clone(), self.ranges.clone()
        return twin

    def select_rows(self, rows: Tensor) -> None:
        """Rows in another order."""
        self.codes, self.ranges = self.codes[rows], self.ranges[rows]

    def bytes(self, layer: LayerCache, stored: int) -> int:
        """The entries' and their codes'."""
        return stored + sum(layer.held) * layer.kv_heads * entry_code_bytes(layer.head_dim)


def entry_code_bytes(head_dim: int) -> int:
    """Bytes that one entry of one KV head has beside the cache: its codes, a step and a least value."""
    return code_bytes(head_dim) + 8


@dataclass(frozen=True)
class Twilight(Method):
    """Reads the entries of Quest's pages that hold most of the attention mass, as four-bit keys tell it."""

    p: float = 0.85
    """Share of the mass, as estimated, that the entries read must hold."""
    select_by: Literal["kv_head", "q_head"] = "kv_head"
    """Whose set of entries: one per KV head, or one per query head."""

    @property
    def needs_bounds(self) -> Literal["closed", "all"] | None:
        """As Quest: the newest page is no matter of its bounds."""
        return self._candidates.needs_bounds

    def start(self, layer: LayerCache) -> State:
        """The codes of its keys."""
        return Codes(layer)

    def select(self, q: Tensor, layer: LayerCache, ops: Ops) -> Selection:
        """Of Quest's pages, what holds a share ``p`` of the mass."""
        pages, state = self._candidates.select(q, layer, ops), layer.state
        assert isinstance(pages, TopPages) and isinstance(state, Codes)
        return TopMass(pages, state.codes, state.ranges, self.p)

    def check(self, page_size: int) -> None:
        """A share of the mass, and room for one page."""
        if not 0 < self.p <= 1:
            raise UsageError(f"Twilight's p is a share of the attention mass, not {self.p}.", "Use -M twilight.p=0.85.")
        if self.budget < page_size:
            raise UsageError(
                f"Twilight chooses among whole pages: budget {self.budget} is below one page of {page_size} tokens.",
                f"Use --budget {page_size} or more, or a smaller --page-size.",
            )

    def tokens_visible(self, length: int, page_size: int) -> int:
        """The most there can be: all entries of the candidates."""
        return self._candidates.tokens_visible(length, page_size)

    def bytes_read(self, length: int, shape: CacheShape) -> int:
        """The most there can be; see :meth:`bytes_counted`."""
        group = shape.query_heads // shape.kv_heads if self.select_by == "q_head" else 1
        return self.bytes_counted(length, shape, min(length, group * self.tokens_visible(length, shape.page_size)))

    def bytes_counted(self, length: int, shape: CacheShape, read: float) -> int:
        """Bounds of the pages that Quest scores, codes of its candidates' entries, and the entries that were read."""
        visible = self.tokens_visible(length, shape.page_size)
        group = shape.query_heads // shape.kv_heads if self.select_by == "q_head" else 1
        listed = min(length, group * visible)
        scored = self._candidates.bytes_read(length, shape) - shape.entry_bytes * listed
        return scored + listed * shape.kv_heads * entry_code_bytes(shape.head_dim) + round(read * shape.entry_bytes)

    def arguments(self, page_size: int) -> dict[str, object]:
        """Every parameter, with the budget as it takes effect: whole pages."""
        return {"budget": self.budget // page_size * page_size, "p": self.p, "select_by": self.select_by}

    @property
    def _candidates(self) -> Quest:
        return Quest(self.budget, select_by=self.select_by)
