"""Which pages the rows of a cache own, and the page table that ops read. Caches share pages through one pool."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from questbench.cache.paging import PagePool


class OwnedPages:
    """The pages of every row, in the order of its entries.

    Args:
        pool: where pages come from.
        rows: rows of the batch, which own nothing at first.
        width: pages per row that the table has room for at first.
    """

    def __init__(self, pool: PagePool, rows: int, width: int) -> None:
        self.pool = pool
        self.owned: list[list[int]] = [[] for _ in range(rows)]
        self.table = torch.zeros((rows, max(width, 1)), dtype=torch.int32, device=pool.k.device)
        """``[B, W]`` int32, W at least the pages of the longest row."""
        self._may_share = False
        self._view: Tensor | None = None

    @property
    def view(self) -> Tensor:
        """``[B, P]`` int32, P the pages of the longest row."""
        if self._view is None:
            self._view = self.table[:, : max(map(len, self.owned), default=0)]
        return self._view

    def gather(self, row: int, held: int, stored: Tensor) -> Tensor:
        """The first ``held`` entries of a row ``[Hk, held, D]`` (a copy), from the pool's keys or values."""
        return stored[self.table[row, : len(self.owned[row])].long()].transpose(0, 1).flatten(1, 2)[:, :held]

    def runs(self, row: int) -> Iterator[tuple[int, int, int]]:
        """Pages of a row that lie one behind the other: (the first in the row, the first in the pool, how many)."""
        owned, start = self.owned[row], 0
        for place in range(1, len(owned) + 1):
            if place == len(owned) or owned[place] != owned[place - 1] + 1:
                yield start, owned[start], place - start
                start = place

    def replace(self, row: int, k: Tensor, v: Tensor) -> None:
        """Other keys and values ``[Hk, held, D]`` for the entries of a row (pruned, quantised); not their bounds."""
        size = self.pool.page_size
        for place in range(-(-k.shape[1] // size)):
            page, slots = self.own(row, place), slice(place * size, (place + 1) * size)
            for stored, new in ((self.pool.k, k[:, slots]), (self.pool.v, v[:, slots])):
                stored[page, :, : new.shape[1]] = new

    def make_room(self, row: int, held: int, count: int) -> bool:
        """Own every page that the next ``count`` entries of a row touch, alone; whether there are more pages now."""
        if count == 0:
            return False
        owned, size = self.owned[row], self.pool.page_size
        end = -(-(held + count) // size)
        for place in range(held // size, min(end, len(owned))):
            self.own(row, place)
        missing = end - len(owned)
        if missing <= 0:
            return False
        pages, total = self.pool.allocate(missing), len(owned) + missing
        if total > self.table.shape[1]:
            wider = self.table.new_zeros((len(self.owned), max(total, 2 * self.table.shape[1])))
            wider[:, : self.table.shape[1]] = self.table
            self.table = wider
        self.table[row, len(owned) : total] = torch.tensor(pages, dtype=torch.int32, device=self.table.device)
        owned += pages
        self._view = None
        return True

    def own(self, row: int, place: int) -> int:
        """The physical page at a place, which no other cache holds from now on."""
        owned = self.owned[row]
        if self.pool.is_shared(owned[place]):
            owned[place] = self.pool.copy(owned[place])
            self.table[row, place] = owned[place]
        return owned[place]

    def own_all(self) -> None:
        """Own every page alone: eviction in place may write to any of them."""
        if self._may_share:
            for row, owned in enumerate(self.owned):
                for place in range(len(owned)):
                    self.own(row, place)
            self._may_share = False

    def fork(self) -> OwnedPages:
        """The same pages once more, shared until either writes to them."""
        return self.of_rows(list(range(len(self.owned))))

    def of_rows(self, order: list[int]) -> OwnedPages:
        """The pages of some rows, repeated or left out, shared with these."""
        twin = OwnedPages(self.pool, len(order), 1)
        twin.owned = [list(self.owned[row]) for row in order]
        for pages in twin.owned:
            self.pool.share(pages)
        twin.table = self.table[torch.tensor(order, device=self.table.device)]
        twin._may_share = self._may_share = True
        return twin

    def release(self) -> None:
        """Give the pages back to the pool."""
        for pages in self.owned:
            self.pool.release(pages)
        self.owned = [[] for _ in self.owned]
        self._view = None
