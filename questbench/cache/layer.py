"""The cache of one layer under one method: what a prompt's end and a step's end drop, and forks for other methods."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from questbench.cache.eviction import dropped_slots, entries, evict, kept_slots, of_row, victims
from questbench.cache.owned import OwnedPages
from questbench.cache.store import EntryStore
from questbench.methods._base import CacheShape, Keep, Method, defines


class LayerCache(EntryStore):
    """Keys and values of one layer under one method; see :class:`EntryStore` for what it is made of."""

    @property
    def parts(self) -> tuple[LayerCache, ...]:
        """The caches that this layer is stored in: itself. See :class:`GroupedLayer`."""
        return (self,)

    def end_prefill(self) -> None:
        """Hand the prefill's attention mass to the method and drop what it does not keep.

        Raises:
            ValueError: the mass that the method needs was not collected, or not that of all entries.
        """
        self.steps = 0
        wanted = self.method.prompt_mass
        collected = self.prefill_mass.get(wanted)
        if wanted != 0 and self.mass is not None and (collected is not None or not self._inherited):
            if collected is None or collected.shape[2] < max(self.held):
                whose = "all queries" if wanted == "sum" else f"the last {wanted} queries"
                raise ValueError(
                    f"{self.method.name} needs the attention mass of {whose} of the text, which was not collected"
                )
            judged, mass = self.method.judge(self, collected), self.mass[:, :, : collected.shape[2]]
            # A running sum goes on in later turns: entries that are resident already keep what they have.
            mass.copy_(mass + judged if wanted == "sum" else judged)
        if (keep := self.method.keep_prompt()) is not None:
            # Where steps drop nothing, slots stay in the order of the text.
            self._drop(keep, in_place=self.method.keep_step() is not None)
        if self.state is not None:
            self.state.prompted(self)

    def end_step(self) -> None:
        """Drop what the method does not keep after a decode step, in place: one entry per KV head at most.

        After a first step that judges for the whole prompt, what is kept moves to a new store.
        """
        if self.state is not None:
            self.state.stepped(self)
        if (keep := self.method.keep_step()) is not None:
            dropped = max(self.held) > keep.entries
            self._drop(keep, in_place=True)
            self._evicted |= dropped

    def _drop(self, keep: Keep, *, in_place: bool) -> None:
        if not self.frozen:  # else the op itself leaves alone what fits
            longest = max(self.held)
            if longest > keep.entries + in_place:
                self.retain(keep)
            if longest != keep.entries + 1 or not in_place:
                return
        assert self.positions is not None
        if self.state is not None and defines(self.state, "dropping"):
            self._tell(victims(self.ops, self.paged, self.positions, self.mass, keep))
        if not self.frozen:
            self._slots.newest = keep.entries if min(self.held) == longest else None
            self.held = [min(held, keep.entries) for held in self.held]
            self._floor = list(self.held)
            self.pages.own_all()
        evict(self.ops, self.paged, self.positions, self.mass, keep)

    def _tell(self, slots: Tensor) -> None:
        """Tell the state what is about to be dropped: ``[B, Hk, n]``, or -1."""
        assert self.state is not None
        if slots.shape[2]:
            self.state.dropping(self, slots, *entries(self.paged, slots))

    def retain(self, keep: Keep) -> None:
        """Gather the kept entries of every row, oldest first, into a store of their own."""
        if self.positions is None:
            raise ValueError(f"the cache of {self.method.name} tracks no positions")
        old, held = self._slots, self.held
        gathered = [self.gather(row) for row in range(self.rows)]
        kept = [
            kept_slots(self.positions[row, :, : held[row]], of_row(self.mass, row, held[row]), keep)
            for row in range(self.rows)
        ]
        if self.state is not None and defines(self.state, "dropping"):
            self._tell(dropped_slots(kept, held))
        # Steps that drop something need room for one entry, others for what was asked for and has not come yet.
        room = 1 if self.method.keep_step() else max(self._capacity - max(self.seen), 1)
        width = -(-(keep.entries + room) // self.page_size)
        self.pages.release()
        # Entries that are appended anew have right bounds.
        layout = self._layout(self.method) if self.method.needs_bounds else "none"
        self.pages = OwnedPages(self._pool(self.rows * width, layout), self.rows, width)
        self._slots = self._new_slots(width * self.page_size)
        self.lengths.zero_()
        self.held, self._evicted = [0] * self.rows, False
        self._floor = [slots.shape[1] for slots in kept]
        for row, count in enumerate(self._floor):
            self._make_room(row, count)
        wide = (self.rows, self.kv_heads, max(self._floor), self.head_dim)
        k, v = (torch.zeros(wide, dtype=self.dtype, device=self.device) for _ in "kv")
        for row, slots in enumerate(kept):
            index, count = slots[..., None].expand(-1, -1, self.head_dim), slots.shape[1]
            k[row, :, wide[2] - count :], v[row, :, wide[2] - count :] = (x.gather(1, index) for x in gathered[row])
        self._slots.take_kept(old, kept)
        self.held = list(self._floor)
        counts = torch.tensor(self.held, dtype=torch.int32, device=self.device)
        self.ops.append(k, v, self.paged, counts)
        if self.state is not None:
            self.state.moved(self, kept)

    def fork(self, method: Method, *, page_size: int | None = None) -> LayerCache:
        """A cache of its own for ``method`` that starts from this one's entries.

        Closed pages are shared copy-on-write. Another page size copies the entries into new pages.
        Evicting methods share too until :meth:`end_prefill` or the first step moves what they keep.
        """
        # Who needs no bounds leaves them behind, and so does eviction in place: then there are none for a fork to use.
        bounded = self._bounded and self.positions is None and self.pool.layout in ("page", self._layout(method))
        same_pages = page_size in (None, self.page_size) and (bounded or not method.needs_bounds)
        shape = dataclasses.replace(self.shape, page_size=page_size or self.page_size)
        if same_pages:
            twin = self.sibling(method, shape, pages=self.pages.fork())
            twin.lengths, twin.held = self.lengths.clone(), list(self.held)
        else:
            twin = self.sibling(method, shape)
            twin.copy_entries([self.gather(row) for row in range(self.rows)])
        twin.inherit(self)
        if same_pages and method == self.method and self.state is not None:
            twin.state = self.state.fork(twin)
        else:
            twin.state = method.start(twin)
        return twin

    def sibling(self, method: Method, shape: CacheShape, *, pages: OwnedPages | None = None) -> LayerCache:
        """An empty cache of the same rows and kind for ``method``: with these pages, or with room for these entries."""
        return LayerCache(
            method,
            self.ops,
            rows=self.rows,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            page_size=shape.page_size,
            dtype=self.dtype,
            device=self.device,
            capacity=0 if pages else max(self.held) + 1,
            index=shape.index,
            layers=shape.layers,
            rotate=self.rotate,
            query_heads=self.query_heads and shape.query_heads,
            pages=pages,
        )

    def inherit(self, other: LayerCache, heads: Tensor | None = None) -> None:
        """Take over what another cache knows of the entries that this one has from it, of some of its KV heads."""
        self._fit_slots()
        self.seen, self.steps = list(other.seen), other.steps
        self._floor, self._evicted = list(other._floor), other._evicted
        mine, theirs = self.method, other.method
        same_rule = (mine.step_mass, mine.prompt_mass) == (theirs.step_mass, theirs.prompt_mass)
        if same_rule and (defines(mine, "judge") or defines(theirs, "judge")):  # mass is what their judge made of it
            same_rule = type(mine) is type(theirs) and dataclasses.replace(theirs, budget=mine.budget) == mine
        self._slots.take(other._slots, heads, mass=same_rule)
        self._inherited = self.mass is not None and other.mass is not None and same_rule
        if not self._inherited:
            self.prefill_mass = {
                mode: mass if heads is None else mass[:, heads] for mode, mass in other.prefill_mass.items()
            }
            self.tail = other.tail if other.tail is None or heads is None else other.tail.part(heads, other.kv_heads)
