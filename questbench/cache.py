"""Paged KV cache of one layer, with page bounds, eviction and copy-on-write forks. Batched: rows differ in length.

A row's entries sit in slots 0 .. held-1, slot t in logical page t // S. Without eviction a slot is a text position;
with it, ``positions`` tells. ``seen`` counts the text, ``held`` what is resident.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from questbench.eviction import kept_slots, of_row
from questbench.kernels._ops import Ops
from questbench.kernels._paged import Paged
from questbench.methods._base import Keep, Method
from questbench.paging import BoundsLayout, PagePool, widened

Rotate = Callable[[Tensor, Tensor], Tensor]
"""``rotate(x [B, H, D], delta [B])`` turns rotary embeddings by ``delta`` positions."""


class LayerCache:
    """Keys and values of one layer under one method.

    Args:
        method: the policy of this layer.
        ops: the backend that does the work.
        rows, kv_heads, head_dim, page_size, dtype, device: shape and storage.
        capacity: entries per row to allocate ahead; the cache grows beyond it when it must.
        index: number of the layer in its model.
        query_heads: of the model; where it equals ``kv_heads``, bounds may stand by channel (``kernels/_bounds.py``).
        rotate: rotary embedding of the model, for methods that re-index positions.
        pool: share the pages of another cache instead of allocating (see :meth:`fork`).

    Raises:
        UsageError: the backend has no kernels for this shape.
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
        rotate: Rotate | None = None,
        pool: PagePool | None = None,
        bounds: bool | None = None,
        query_heads: int | None = None,
    ) -> None:
        ops.limits.check(ops.name, query_heads=query_heads, kv_heads=kv_heads, head_dim=head_dim, page_size=page_size)
        self.method, self.ops, self.index, self.rotate = method, ops, index, rotate
        self.rows, self.kv_heads, self.head_dim, self.page_size = rows, kv_heads, head_dim, page_size
        self.dtype, self.device = dtype, torch.device(device)
        self.query_heads, self._bounded = query_heads, method.needs_bounds or bool(bounds)
        self.seen, self.held = [0] * rows, [0] * rows
        self.steps = 0
        """Decode steps since the prefill."""
        self.lengths = torch.zeros(rows, dtype=torch.int32, device=self.device)
        self.prefill_mass: dict[str, Tensor] = {}
        """Attention mass ``[B, Hk, T]`` of the text so far: of the ``last`` query, and the ``sum`` over queries."""
        self._inherited = False  # whether ``mass`` comes from a cache of the same rule: nothing need be collected then
        pages = -(-capacity // page_size)
        self.pool = pool or PagePool(
            kv_heads,
            head_dim,
            page_size,
            dtype=dtype,
            device=self.device,
            pages=max(pages * rows, 1),
            bounds=self._layout(method) if self._bounded else "none",
        )
        self._owned: list[list[int]] = [[] for _ in range(rows)]
        self._may_share = False
        self._table = torch.zeros((rows, max(pages, 1)), dtype=torch.int32, device=self.device)
        self._paged: Paged | None = None
        self._newest: int | None = None
        """Slot that holds the newest entry's position in every row, once every row evicts in every step."""
        evicts = method.forget() is not None
        slots = self._table.shape[1] * page_size
        self.positions = self._slots(slots, torch.int32) if evicts else None
        self.mass = self._slots(slots, torch.float32) if method.observes != "nothing" else None

    @property
    def bounds(self) -> Tensor | None:
        """Max and min of the keys of each page in the pool's layout, or ``None`` where the method needs none."""
        return self.pool.bounds if self._bounded else None

    @property
    def page_table(self) -> Tensor:
        """``[B, P]`` int32, P the pages of the longest row."""
        return self.paged.table

    @property
    def paged(self) -> Paged:
        """What the ops are given. The same value until a page is added or storage moves."""
        held, pool = self._paged, self.pool
        if held is None or held.k is not pool.k or held.lengths is not self.lengths:
            table = self._table[:, : max(map(len, self._owned), default=0)]
            held = self._paged = Paged(pool.k, pool.v, table, self.lengths, self.bounds)
        return held

    @property
    def slots(self) -> int:
        """Slots per row that ``page_table`` spans."""
        return self.page_table.shape[1] * self.page_size

    @property
    def reversible(self) -> bool:
        """Whether nothing was dropped, so that :meth:`rewind` can take the newest entries back."""
        return self.positions is None or self.held == self.seen

    def lag(self) -> Tensor | None:
        """``[B]``: position in the cache less that in the text, of the newest entry; ``None`` if nothing is gone."""
        if self._newest is not None and self.positions is not None:
            return self.lengths - self.positions[:, 0, self._newest] - 1
        gone = [held - seen for held, seen in zip(self.held, self.seen, strict=True)]
        return torch.tensor(gone, device=self.device) if any(gone) else None

    def append(self, k: Tensor, v: Tensor, new: Sequence[int] | None = None) -> None:
        """Store the last ``new[b]`` of the n entries ``[B, Hk, n, D]`` of each row (all n by default)."""
        counts = [k.shape[2]] * self.rows if new is None else list(new)
        for row, count in enumerate(counts):
            self._make_room(row, count)
        self._number(counts)
        uneven = None if new is None else torch.tensor(counts, dtype=torch.int32, device=self.device)
        self.ops.append(k, v, self.paged, uneven)
        for row, count in enumerate(counts):
            self.seen[row] += count
            self.held[row] += count

    def gather(self, row: int) -> tuple[Tensor, Tensor]:
        """Resident keys and values of one row in slot order, ``[Hk, held, D]`` each (copies)."""
        pages = self._table[row, : len(self._owned[row])].long()
        k, v = (x[pages].transpose(0, 1).flatten(1, 2)[:, : self.held[row]] for x in (self.pool.k, self.pool.v))
        return k, v

    def end_prefill(self) -> None:
        """Hand the prefill's attention mass to the method and drop what it does not keep.

        Raises:
            ValueError: the mass that the method needs was not collected, or not that of all entries.
        """
        self.steps = 0
        wanted = self.method.prefill_observes
        collected = self.prefill_mass.get(wanted)
        if wanted != "nothing" and self.mass is not None and (collected is not None or not self._inherited):
            if collected is None or collected.shape[2] < max(self.held):
                raise ValueError(
                    f"{self.method.name} needs the attention mass '{wanted}' of the whole text, which was not collected"
                )
            mass = self.mass[:, :, : collected.shape[2]]
            # A running sum goes on in later turns: entries that are resident already keep what they have.
            mass.copy_(mass + collected if wanted == "sum" else collected)
        if self.method.forgets_prefill:
            self.forget()

    def forget(self) -> None:
        """Drop what the method does not keep: in place after a decode step, by a new store after a prefill."""
        keep = self.method.forget()
        if keep is None or self.positions is None:
            return
        longest = max(self.held)
        if longest > keep.entries + 1:
            self.retain(keep)
        elif longest == keep.entries + 1:
            self._unshare()
            self._newest = keep.entries if min(self.held) == longest else None
            self.ops.evict(
                self.paged,
                self.positions,
                self.mass if keep.by == "mass" else None,
                capacity=keep.entries,
                sinks=keep.sinks,
                recent=keep.recent,
                shared=keep.shared,
            )
            self.held = [min(held, keep.entries) for held in self.held]

    def rewind(self, held: int | Sequence[int]) -> None:
        """Forget the newest entries of each row so that at most ``held`` (of all, or per row) remain; pages stay owned.

        Raises:
            ValueError: entries were dropped, so that the newest ones may have taken older ones' slots.
        """
        if not self.reversible:
            raise ValueError(f"{self.method.name} has dropped entries: its cache cannot go back")
        for row, most in enumerate([held] * self.rows if isinstance(held, int) else held):
            if self.held[row] <= most:
                continue
            self.seen[row] -= self.held[row] - most
            self.held[row] = most
            if self.bounds is not None and most % self.page_size:
                self.pool.reopen(self._own(row, most // self.page_size), most % self.page_size)
            self.prefill_mass.clear()  # it counts queries that are gone
        limit: Any = held if isinstance(held, int) else torch.tensor(held, dtype=torch.int32, device=self.device)
        self.lengths.clamp_(max=limit)

    def retain(self, keep: Keep) -> None:
        """Gather the kept entries of every row, oldest first, into a store of their own."""
        if self.positions is None:
            raise ValueError(f"the cache of {self.method.name} tracks no positions")
        fresh = PagePool(
            self.kv_heads,
            self.head_dim,
            self.page_size,
            dtype=self.dtype,
            device=self.device,
            pages=self.rows * (-(-(keep.entries + 1) // self.page_size)),
            bounds="none",
        )
        old_positions, old_mass, held, seen = self.positions, self.mass, self.held, self.seen
        gathered = [self.gather(row) for row in range(self.rows)]
        self.release()
        self.pool = fresh
        self._table = self._table.new_zeros((self.rows, 1))
        self.positions = self._slots(self.page_size, torch.int32)
        self.mass = None if old_mass is None else self._slots(self.page_size, torch.float32)
        self.lengths.zero_()
        self.held, self._newest = [0] * self.rows, None
        kept = [
            kept_slots(old_positions[row, :, : held[row]], of_row(old_mass, row, held[row]), keep)
            for row in range(self.rows)
        ]
        for row, slots in enumerate(kept):
            self._make_room(row, slots.shape[1])
        width = max(slots.shape[1] for slots in kept)
        k = torch.zeros((self.rows, self.kv_heads, width, self.head_dim), dtype=self.dtype, device=self.device)
        v = torch.zeros_like(k)
        for row, slots in enumerate(kept):
            index = slots[..., None].expand(-1, -1, self.head_dim)
            count = slots.shape[1]
            k[row, :, width - count :], v[row, :, width - count :] = (x.gather(1, index) for x in gathered[row])
            self.positions[row, :, :count] = old_positions[row].gather(1, slots)
            if self.mass is not None and old_mass is not None:
                self.mass[row, :, :count] = old_mass[row].gather(1, slots)
        self.held, self.seen = [slots.shape[1] for slots in kept], seen
        counts = torch.tensor(self.held, dtype=torch.int32, device=self.device)
        self.ops.append(k, v, self.paged, counts)

    def fork(self, method: Method, *, page_size: int | None = None) -> LayerCache:
        """A cache of its own for ``method`` that starts from this one's entries.

        Closed pages are shared copy-on-write. Another page size copies the entries into new pages.
        Evicting methods share too until :meth:`end_prefill` or the first step moves what they keep.
        """
        # Who needs no bounds leaves them behind, and so does eviction in place: then there are none for a fork to use.
        bounded = self._bounded and self.positions is None and self.pool.layout in ("page", self._layout(method))
        same_pages = page_size in (None, self.page_size) and (bounded or not method.needs_bounds)
        twin = LayerCache(
            method,
            self.ops,
            rows=self.rows,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            page_size=page_size or self.page_size,
            dtype=self.dtype,
            device=self.device,
            capacity=0 if same_pages else max(self.held) + 1,
            index=self.index,
            rotate=self.rotate,
            query_heads=self.query_heads,
            pool=self.pool if same_pages else None,
        )
        twin.prefill_mass, twin.steps = dict(self.prefill_mass), self.steps
        if same_pages:
            twin._may_share = self._may_share = True
            twin._owned = [list(pages) for pages in self._owned]
            for pages in twin._owned:
                self.pool.share(pages)
            twin._table, twin._paged = self._table.clone(), None
            twin.lengths, twin.held, twin.seen = self.lengths.clone(), list(self.held), list(self.seen)
            twin._fit_slots()
        else:
            longest = max(self.held)
            wide = (self.rows, self.kv_heads, longest, self.head_dim)
            k, v = (torch.zeros(wide, dtype=self.dtype, device=self.device) for _ in "kv")
            for row in range(self.rows):
                k[row, :, longest - self.held[row] :], v[row, :, longest - self.held[row] :] = self.gather(row)
            twin.append(k, v, self.held)
            twin.seen = list(self.seen)
        if twin.positions is not None:
            if self.positions is not None:
                common = min(twin.positions.shape[2], self.positions.shape[2])
                twin.positions[:, :, :common] = self.positions[:, :, :common]
            else:
                twin.positions[:] = torch.arange(twin.positions.shape[2], dtype=torch.int32, device=self.device)
        same_rule = (method.observes, method.prefill_observes) == (self.method.observes, self.method.prefill_observes)
        if twin.mass is not None and self.mass is not None and same_rule:
            common = min(twin.mass.shape[2], self.mass.shape[2])
            twin.mass[:, :, :common] = self.mass[:, :, :common]
            twin.prefill_mass, twin._inherited = {}, True
        return twin

    def select_rows(self, rows: Tensor) -> None:
        """Keep or repeat rows (beam search, batch selection): row i becomes the old row ``rows[i]``."""
        order, rows = rows.tolist(), rows.to(self.device)
        owned = [list(self._owned[row]) for row in order]
        for pages in owned:
            self.pool.share(pages)
        self.release()
        self._owned, self.rows, self._may_share = owned, len(order), True
        self._table, self._paged = self._table[rows], None
        self.lengths = self.lengths[rows]
        self.held, self.seen = ([counts[row] for row in order] for counts in (self.held, self.seen))
        self.positions, self.mass = (None if x is None else x[rows] for x in (self.positions, self.mass))
        self.prefill_mass = {mode: mass[rows] for mode, mass in self.prefill_mass.items()}

    def release(self) -> None:
        """Give this cache's pages back to the pool; the cache must not be used afterwards."""
        for pages in self._owned:
            self.pool.release(pages)
        self._owned = [[] for _ in range(self.rows)]
        self._paged = None

    def _layout(self, method: Method) -> BoundsLayout:
        return "channel" if self.query_heads == self.kv_heads and not method.scores_newest else "page"

    def _unshare(self) -> None:
        """Own every page alone: eviction in place may write to any of them."""
        if not self._may_share:
            return
        for row, owned in enumerate(self._owned):
            for place in range(len(owned)):
                self._own(row, place)
        self._may_share = False

    def _own(self, row: int, place: int) -> int:
        """The physical page at a place, which no other cache holds from now on."""
        owned = self._owned[row]
        if self.pool.is_shared(owned[place]):
            owned[place] = self.pool.copy(owned[place])
            self._table[row, place] = owned[place]
        return owned[place]

    def _make_room(self, row: int, count: int) -> None:
        """Own every page that the next ``count`` entries of a row touch."""
        if count == 0:
            return
        owned, end = self._owned[row], -(-(self.held[row] + count) // self.page_size)
        for place in range(self.held[row] // self.page_size, min(end, len(owned))):
            self._own(row, place)
        missing = end - len(owned)
        if missing <= 0:
            return
        pages, total = self.pool.allocate(missing), len(owned) + missing
        if total > self._table.shape[1]:
            wider = self._table.new_zeros((self.rows, max(total, 2 * self._table.shape[1])))
            wider[:, : self._table.shape[1]] = self._table
            self._table = wider
        self._table[row, len(owned) : total] = torch.tensor(pages, dtype=torch.int32, device=self.device)
        owned += pages
        self._paged = None
        self._fit_slots()

    def _number(self, counts: list[int]) -> None:
        """Give the entries about to be appended their text positions and no mass yet."""
        if self.positions is None and self.mass is None:
            return
        if self._newest is not None and all(count == 1 for count in counts):
            # The slot is that of the step before and the position is the next: no number of the host is involved,
            # and a step that was captured in a CUDA graph can be replayed.
            if self.positions is not None:
                self.positions[:, :, self._newest].add_(1)
            if self.mass is not None and self.method.observes == "sum":  # "last" is overwritten
                self.mass[:, :, self._newest].zero_()
            return
        self._newest = None
        for row, count in enumerate(counts):
            slots = slice(self.held[row], self.held[row] + count)
            if self.positions is not None:
                if count == 1:
                    self.positions[row, :, slots] = self.seen[row]
                else:
                    text = range(self.seen[row], self.seen[row] + count)
                    self.positions[row, :, slots] = torch.tensor(text, dtype=torch.int32, device=self.device)
            if self.mass is not None:
                self.mass[row, :, slots] = 0.0

    def _slots(self, slots: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros((self.rows, self.kv_heads, slots), dtype=dtype, device=self.device)

    def _fit_slots(self) -> None:
        """Grow the per-slot tensors with the page table."""
        slots = self._table.shape[1] * self.page_size
        self.positions, self.mass = widened(self.positions, slots), widened(self.mass, slots)
