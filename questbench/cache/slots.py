"""What a cache knows of every slot besides key and value: the text position, and attention mass to judge by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Columns(NamedTuple):
    """One slot of every row."""

    positions: Tensor | None
    """``[B, Hk]``, a view."""
    mass: Tensor | None
    """``[B, Hk]``, a view."""
    one: Tensor
    """int32: a Python number would be made a tensor in every step."""


class Slots:
    """Values per slot, each ``None`` where no rule asks for it.

    Args:
        rows, kv_heads, slots, device: shape and place.
        positions: whether entries are dropped, so that a slot is no position.
        mass: whether entries are judged by attention; ``sums``: by that of all steps.
    """

    def __init__(
        self, rows: int, kv_heads: int, slots: int, device: torch.device, *, positions: bool, mass: bool, sums: bool
    ) -> None:
        shape = (rows, kv_heads, slots)
        self.positions = torch.zeros(shape, dtype=torch.int32, device=device) if positions else None
        """``[B, Hk, C]`` int32."""
        self.mass = torch.zeros(shape, device=device) if mass else None
        """``[B, Hk, C]`` fp32."""
        self._sums = sums
        self._newest: int | None = None
        self._columns: Columns | None = None
        self.now: Tensor | None = None
        """``[B]`` int32: the text's length per row, in a frozen cache that has yet to fill up."""

    @property
    def newest(self) -> int | None:
        """Slot that holds the newest entry's position in every row, once every row evicts in every step."""
        return self._newest

    @newest.setter
    def newest(self, slot: int | None) -> None:
        if slot != self._newest:
            self._newest, self._columns = slot, None

    def _of_newest(self, slot: int) -> Columns:
        """What is known of the newest entries: the same views in every step, as making them takes time."""
        if self._columns is None:
            positions, mass = (None if x is None else x[:, :, slot] for x in (self.positions, self.mass))
            device = next(x.device for x in (positions, mass) if x is not None)
            self._columns = Columns(positions, mass, torch.ones((), dtype=torch.int32, device=device))
        return self._columns

    def number(self, counts: Sequence[int], seen: Sequence[int], held: Sequence[int], lengths: Tensor) -> None:
        """Give the entries about to be appended their text positions and no mass yet."""
        if self.positions is None and self.mass is None:
            return
        if self._newest is not None and all(count == 1 for count in counts):
            # The slot is that of the step before and the position is the next: no number of the host is involved,
            # and a step that was captured in a CUDA graph can be replayed.
            columns = self._of_newest(self._newest)
            if columns.positions is not None:
                columns.positions.add_(columns.one)
            if columns.mass is not None and self._sums:  # else the step overwrites it
                columns.mass.zero_()
            return
        self.newest = None
        if self.now is not None:
            self._number_on_device(lengths, self.now)
            return
        alike = len(set(zip(counts, seen, held, strict=True))) == 1  # then one write serves all rows
        for row, count in enumerate(counts[:1] if alike else counts):
            rows, slots = slice(None) if alike else row, slice(held[row], held[row] + count)
            if self.positions is not None and count == 1:
                self.positions[rows, :, slots] = seen[row]
            elif self.positions is not None:
                text = torch.arange(seen[row], seen[row] + count, dtype=torch.int32, device=lengths.device)
                self.positions[rows, :, slots] = text
            if self.mass is not None:
                self.mass[rows, :, slots] = 0.0

    def _number_on_device(self, lengths: Tensor, now: Tensor) -> None:
        """One entry per row, in the slot that ``lengths`` tells."""
        heads = next(values.shape[1] for values in (self.positions, self.mass) if values is not None)
        slot = lengths.long()[:, None, None].expand(-1, heads, 1)
        if self.positions is not None:
            self.positions.scatter_(2, slot, now[:, None, None].expand(-1, heads, 1))
        if self.mass is not None:
            self.mass.scatter_(2, slot, 0.0)
        now += 1

    def freeze(self, seen: Sequence[int], lengths: Tensor) -> None:
        """From now on the host is not asked where an entry goes."""
        if self.newest is None and (self.positions is not None or self.mass is not None):
            self.now = torch.tensor(seen, dtype=torch.int32, device=lengths.device)

    def rewind(self, seen: Sequence[int]) -> None:
        """The text of each row is shorter again."""
        if self.now is not None:
            self.now.copy_(torch.tensor(seen, dtype=torch.int32))

    def lag(self, lengths: Tensor) -> Tensor | None:
        """``[B]``: position in the cache less that in the text, of the newest entry; ``None``: ask the host."""
        if self.newest is not None and self.positions is not None:
            columns = self._of_newest(self.newest)
            assert columns.positions is not None
            return lengths - columns.positions[:, 0] - columns.one
        return None if self.now is None else lengths - self.now

    def fit(self, slots: int) -> None:
        """Room for ``slots`` per row; zeros in what is new."""
        self.positions, self.mass = _widened(self.positions, slots), _widened(self.mass, slots)
        self._columns = None

    def select(self, rows: Tensor) -> None:
        """Row i becomes the old row ``rows[i]``."""
        self.positions, self.mass = (None if x is None else x[rows] for x in (self.positions, self.mass))
        self._columns = None

    def take(self, other: Slots, heads: Tensor | None, *, mass: bool) -> None:
        """What another cache knows of the same slots, of some of its KV heads.

        Args:
            mass: whether its mass is of the kind that is needed here.
        """
        for mine, theirs in ((self.positions, other.positions), (self.mass, other.mass if mass else None)):
            if mine is not None and theirs is not None:
                common = min(mine.shape[2], theirs.shape[2])
                mine[:, :, :common] = (theirs if heads is None else theirs[:, heads])[:, :, :common]
        if self.positions is not None and other.positions is None:
            width = self.positions.shape[2]
            self.positions[:] = torch.arange(width, dtype=torch.int32, device=self.positions.device)

    def take_kept(self, other: Slots, kept: Sequence[Tensor]) -> None:
        """What another cache knows of some slots ``[Hk, n]`` of each row, which stand in this order here."""
        for mine, theirs in ((self.positions, other.positions), (self.mass, other.mass)):
            if mine is not None and theirs is not None:
                for row, slots in enumerate(kept):
                    mine[row, :, : slots.shape[1]] = theirs[row].gather(1, slots)


def _widened(values: Tensor | None, slots: int) -> Tensor | None:
    if values is None or values.shape[2] >= slots:
        return values
    wider = values.new_zeros((*values.shape[:2], slots))
    wider[:, :, : values.shape[2]] = values
    return wider
