"""The entries of one layer in pages: stored, numbered, gathered, taken back, frozen. Batched: rows differ in length.

A row's entries sit in slots 0 .. held-1, slot t in logical page t // S. Without eviction a slot is a text position;
with it, ``positions`` tells. ``seen`` counts the text, ``held`` what is resident.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from questbench.cache.owned import OwnedPages
from questbench.cache.paging import BoundsLayout, PagePool
from questbench.cache.slots import Slots
from questbench.cache.tail import Tail
from questbench.errors import UsageError
from questbench.kernels._ops import Ops
from questbench.kernels._paged import Paged
from questbench.methods._base import CacheShape, Method, PromptMass, State

Rotate = Callable[[Tensor, Tensor], Tensor]
"""``rotate(x [B, H, D], delta [B])`` turns rotary embeddings by ``delta`` positions."""


class EntryStore:
    """Keys and values of one layer, and what is known of them; :class:`LayerCache` says what happens to them.

    Args:
        method: the policy of this layer.
        ops: the backend that does the work.
        rows, kv_heads, head_dim, page_size, dtype, device: shape and storage.
        capacity: entries per row to allocate ahead; the cache grows beyond it when it must.
        index, layers: number of the layer in its model, and how many that has.
        rotate: rotary embedding of the model, for methods that re-index positions.
        bounds: keep page bounds even if the method needs none.
        query_heads: of the model; where it equals ``kv_heads``, bounds may stand by channel (``kernels/_bounds.py``).
        pages: those of another cache instead of new ones (see :meth:`fork`).

    Raises:
        UsageError: the backend has no kernels for this shape, or the method both drops in steps and needs bounds.
    """

    def __init__(
        self,
        method: Method,
        ops: Ops,
        *,
        rows: int,
        kv_heads: int,
        head_dim: int,
        page_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        capacity: int = 0,
        index: int = 0,
        layers: int = 1,
        rotate: Rotate | None = None,
        bounds: bool | None = None,
        query_heads: int | None = None,
        pages: OwnedPages | None = None,
    ) -> None:
        if method.needs_bounds and method.keep_step():
            raise UsageError(
                f"{method.name} drops an entry in every step and needs page bounds, which eviction leaves wrong.",
                "Let it drop at the prompt's end alone (keep_prompt), or score pages from a State of its own.",
            )
        ops.limits.check(ops.name, query_heads=query_heads, kv_heads=kv_heads, head_dim=head_dim, page_size=page_size)
        self.method, self.ops, self.rotate, self.rows, self.query_heads = method, ops, rotate, rows, query_heads
        self.shape = CacheShape(
            query_heads or kv_heads, kv_heads, head_dim, page_size, dtype.itemsize, index=index, layers=layers
        )
        self.index, self.kv_heads, self.head_dim, self.page_size = index, kv_heads, head_dim, page_size
        self.dtype, self.device = dtype, torch.device(device)
        self.seen, self.held = [0] * rows, [0] * rows
        self.steps = 0
        """Decode steps since the prefill."""
        self.lengths = torch.zeros(rows, dtype=torch.int32, device=self.device)
        self.prefill_mass: dict[PromptMass, Tensor] = {}
        """Attention mass ``[B, Hk, T]`` of the text so far: of its last n queries, and the ``sum`` over all."""
        self.tail: Tail | None = None
        """The last queries of a prompt, while mass is collected from them."""
        self._inherited = False  # whether ``mass`` comes from a cache of the same rule: nothing need be collected then
        self._capacity, self._bounded = capacity, method.needs_bounds is not None or bool(bounds)
        width = -(-capacity // page_size)
        layout = self._layout(method) if self._bounded else "none"
        self.pages = pages or OwnedPages(self._pool(max(width * rows, 1), layout), rows, width)
        self._floor = [0] * rows  # entries right after the last time that many were dropped at once
        self._evicted = False
        self._paged: Paged | None = None
        self.frozen = False
        """Whether a step is the same device operations every time; see :meth:`freeze`."""
        self._slots = self._new_slots(self.pages.table.shape[1] * page_size)
        # Whoever brings pages gives the state that belongs to them.
        self.state: State | None = None if pages is not None else method.start(self)

    @staticmethod
    def split(x: Tensor) -> tuple[Tensor, ...]:
        """``[B, H, ...]`` by parts."""
        return (x,)

    @staticmethod
    def join(parts: Sequence[Tensor]) -> Tensor:
        """What :meth:`split` has taken apart."""
        return parts[0]

    @property
    def pool(self) -> PagePool:
        """Where the pages come from."""
        return self.pages.pool

    @property
    def bounds(self) -> Tensor | None:
        """Max and min of the keys of each page in the pool's layout, or ``None`` where the method needs none."""
        return self.pages.pool.bounds if self._bounded else None

    @property
    def page_table(self) -> Tensor:
        """``[B, P]`` int32, P the pages of the longest row."""
        return self.pages.view

    @property
    def paged(self) -> Paged:
        """What the ops are given. The same value until a page is added or storage moves."""
        known, pool, table = self._paged, self.pages.pool, self.pages.view
        if known is None or known.k is not pool.k or known.table is not table or known.lengths is not self.lengths:
            known = self._paged = Paged(pool.k, pool.v, table, self.lengths, self.bounds)
        return known

    @property
    def positions(self) -> Tensor | None:
        """``[B, Hk, C]`` int32: text positions of the slots, where a method drops entries."""
        return self._slots.positions

    @property
    def mass(self) -> Tensor | None:
        """``[B, Hk, C]`` fp32: attention mass of the slots, where a method judges by it."""
        return self._slots.mass

    @property
    def slots(self) -> int:
        """Slots per row that ``page_table`` spans."""
        return self.page_table.shape[1] * self.page_size

    @property
    def whole(self) -> bool:
        """Whether nothing is gone: slots are text positions, or at least as many."""
        return self.positions is None or self.held == self.seen

    @property
    def reversible(self) -> bool:
        """Whether no decode step has dropped anything, so that :meth:`rewind` can take the newest entries back."""
        return not self._evicted

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes of keys, values and the method's state, and of bounds, as if this cache shared no pages."""
        pages = sum(-(-held // self.page_size) for held in self.held)
        stored = pages * self.page_size * self.shape.entry_bytes
        own = stored if self.state is None else self.state.bytes(self, stored)
        return own, pages * self.shape.entry_bytes if self.method.needs_bounds else 0

    def resident(self, row: int) -> float:
        """Entries that a KV head holds."""
        return self.held[row]

    def places(self, row: int) -> Tensor | None:
        """``[Hk, held]``: text positions of a row's slots; ``None`` where they are the slots themselves."""
        return None if self.positions is None else self.positions[row, :, : self.held[row]]

    def lag(self) -> Tensor | None:
        """``[B]``: position in the cache less that in the text, of the newest entry; ``None`` if nothing is gone."""
        if (lag := self._slots.lag(self.lengths)) is not None:
            return lag
        gone = [held - seen for held, seen in zip(self.held, self.seen, strict=True)]
        return torch.tensor(gone, device=self.device) if any(gone) else None

    def append(self, k: Tensor, v: Tensor, new: Sequence[int] | None = None) -> None:
        """Store the last ``new[b]`` of the n entries ``[B, Hk, n, D]`` of each row (all n by default)."""
        counts = [k.shape[2]] * self.rows if new is None else list(new)
        if not self.frozen:
            for row, count in enumerate(counts):
                self._make_room(row, count)
        self._slots.number(counts, self.seen, self.held, self.lengths)
        uneven = None if new is None else torch.tensor(counts, dtype=torch.int32, device=self.device)
        self.ops.append(k, v, self.paged, uneven)
        if not self.frozen:
            self.seen = [seen + count for seen, count in zip(self.seen, counts, strict=True)]
            self.held = [held + count for held, count in zip(self.held, counts, strict=True)]
        if self.state is not None:
            self.state.appended(self, counts)

    def gather(self, row: int) -> tuple[Tensor, Tensor]:
        """Resident keys and values of one row in slot order, ``[Hk, held, D]`` each (copies)."""
        return self.keys(row), self.pages.gather(row, self.held[row], self.pool.v)

    def keys(self, row: int) -> Tensor:
        """The keys alone, for whoever needs no values."""
        return self.pages.gather(row, self.held[row], self.pool.k)

    def key_pages(self, row: int) -> Iterator[tuple[int, Tensor]]:
        """Keys of one row where they are stored: (first page, ``[pages, Hk, S, D]``).

        Slots behind the newest entry hold anything.
        """
        for place, first, count in self.pages.runs(row):
            yield place, self.pool.k[first : first + count]

    def forget_prompt(self) -> None:
        """Drop what was collected from prompts."""
        self.prefill_mass, self.tail = {}, None

    def rewind(self, held: int | Sequence[int]) -> None:
        """Forget the newest entries of each row so that at most ``held`` (of all, or per row) remain; pages stay owned.

        Raises:
            ValueError: entries were dropped since, so that the newest ones may have taken older ones' slots.
        """
        wanted = [held] * self.rows if isinstance(held, int) else list(held)
        if self._evicted or any(most < least for most, least in zip(wanted, self._floor, strict=True)):
            raise ValueError(f"{self.method.name} has dropped entries: its cache cannot go back")
        for row, most in enumerate(wanted):
            if self.held[row] <= most:
                continue
            self.seen[row] -= self.held[row] - most
            self.held[row] = most
            if self.bounds is not None and most % self.page_size:
                self.pool.reopen(self.pages.own(row, most // self.page_size), most % self.page_size)
            self.forget_prompt()  # its mass counts queries that are gone
        limit: Any = held if isinstance(held, int) else torch.tensor(wanted, dtype=torch.int32, device=self.device)
        self.lengths.clamp_(max=limit)
        self._slots.rewind(self.seen)
        if self.state is not None:
            self.state.rewind(self.held)

    def copy_entries(self, entries: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Fill an empty cache with the keys and values ``[Hk, n, D]`` of each row."""
        counts = [k.shape[1] for k, _ in entries]
        k, v = (
            torch.zeros((self.rows, self.kv_heads, max(counts), self.head_dim), dtype=self.dtype, device=self.device)
            for _ in "kv"
        )
        for row, (own_k, own_v) in enumerate(entries):
            k[row, :, max(counts) - counts[row] :], v[row, :, max(counts) - counts[row] :] = own_k, own_v
        self.append(k, v, counts)

    def select_rows(self, rows: Tensor) -> None:
        """Keep or repeat rows (beam search, batch selection): row i becomes the old row ``rows[i]``."""
        order, rows = rows.tolist(), rows.to(self.device)
        pages = self.pages.of_rows(order)
        self.release()
        self.pages, self.rows = pages, len(order)
        self.lengths = self.lengths[rows]
        self.held, self.seen, self._floor = ([of[row] for row in order] for of in (self.held, self.seen, self._floor))
        self._slots.select(rows)
        self.prefill_mass = {mode: mass[rows] for mode, mass in self.prefill_mass.items()}
        self.tail = self.tail and self.tail.select(order)
        if self.state is not None:
            self.state.select_rows(rows)

    def release(self) -> None:
        """Give this cache's pages back to the pool; the cache must not be used afterwards."""
        self.pages.release()

    def freeze(self, steps: int) -> None:
        """From now on a step is the same device operations every time, so that a CUDA graph can hold it.

        Pages for ``steps`` more entries are owned ahead and the page table spans them; a new entry's slot and position
        are read on the device. The host follows by :meth:`advance`, and the pool cannot grow any more.

        Raises:
            UsageError: the method has still to drop many entries at once, which a step of fixed size cannot do.
        """
        keep = self.method.keep_step()
        if keep is not None and max(self.held) > keep.entries:
            raise UsageError(
                f"{self.method.name} holds {max(self.held)} entries and keeps {keep.entries}: it has to drop first.",
                "Call end_prefill(), or make its first step outside the graph.",
            )
        for row, held in enumerate(self.held):
            self._make_room(row, steps if keep is None else min(steps, keep.entries + 1 - held))
        if keep is not None:  # in-place eviction writes to any page; growth to the newest, which is made room for above
            self.pages.own_all()
        self.pool.fixed = self.frozen = True
        self._slots.freeze(self.seen, self.lengths)

    def advance(self) -> None:
        """The host notes that one step was made of a frozen cache."""
        keep = self.method.keep_step()
        most = max(self.held) + 1 if keep is None else keep.entries
        self._evicted |= max(self.held) + 1 > most
        self.seen = [seen + 1 for seen in self.seen]
        self.held = [min(held + 1, most) for held in self.held]

    def _layout(self, method: Method) -> BoundsLayout:
        return "channel" if self.query_heads == self.kv_heads and method.needs_bounds != "all" else "page"

    def _pool(self, pages: int, bounds: BoundsLayout) -> PagePool:
        return PagePool(
            self.kv_heads,
            self.head_dim,
            self.page_size,
            dtype=self.dtype,
            device=self.device,
            pages=pages,
            bounds=bounds,
        )

    def _make_room(self, row: int, count: int) -> None:
        if self.pages.make_room(row, self.held[row], count):
            self._fit_slots()

    def _new_slots(self, slots: int) -> Slots:
        method = self.method
        judges = method.step_mass != "none" or method.prompt_mass != 0
        return Slots(
            self.rows,
            self.kv_heads,
            slots,
            self.device,
            positions=not method.keeps_all,
            mass=judges,
            sums=method.step_mass == "sum",
        )

    def _fit_slots(self) -> None:
        """What is kept per slot grows with the page table."""
        slots = self.pages.table.shape[1] * self.page_size
        self._slots.fit(slots)
        if self.state is not None:
            self.state.fit(self, slots)
