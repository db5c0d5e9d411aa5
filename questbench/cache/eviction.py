"""Which entries survive when many are dropped at once, after a prefill; one at a time is the op ``evict``.

And what is about to be dropped, for a method's state that wants to know.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from questbench.kernels._ops import Ops
from questbench.kernels._paged import Paged
from questbench.methods._base import Keep


def kept_slots(positions: Tensor, mass: Tensor | None, keep: Keep) -> Tensor:
    """Slots that ``keep`` keeps, ordered by position: ``[Hk, n]`` -> ``[Hk, min(n, keep.entries)]`` int64.

    Args:
        positions: ``[Hk, n]`` int32 text positions.
        mass: ``[Hk, n]`` fp32, or ``None`` where ``keep.by`` is ``age``.
    """
    positions = positions.long()
    if positions.shape[1] <= keep.entries:
        return positions.argsort(dim=1)
    newest = positions.amax(1, keepdim=True)
    safe = (positions < keep.sinks) | (positions > newest - keep.recent)
    if keep.by == "mass":
        if mass is None:
            raise ValueError("keeping by mass needs the attention mass")
        weight = mass.sum(0, keepdim=True).expand_as(mass) if keep.shared else mass
        weight = torch.where(weight.isnan(), torch.inf, weight)
    else:
        weight = positions.to(torch.float64)
    # Three stable sorts, least significant key first: newer before older, heavier before lighter, safe before the rest.
    order = positions.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, weight.gather(1, order).argsort(dim=1, descending=True, stable=True))
    order = order.gather(1, safe.gather(1, order).to(torch.int8).argsort(dim=1, descending=True, stable=True))
    kept = order[:, : keep.entries]
    return kept.gather(1, positions.gather(1, kept).argsort(dim=1))


def of_row(mass: Tensor | None, row: int, held: int) -> Tensor | None:
    """One row's mass ``[Hk, held]``, where there is any."""
    return None if mass is None else mass[row, :, :held]


def dropped_slots(kept: Sequence[Tensor], held: Sequence[int]) -> Tensor:
    """Slots of each row that are not kept, ascending: ``[B, Hk, n]`` int64, -1 behind the last of a row."""
    heads, device = kept[0].shape[0], kept[0].device
    counts = [before - slots.shape[1] for before, slots in zip(held, kept, strict=True)]
    dropped = torch.full((len(kept), heads, max(counts)), -1, device=device)
    for row, (before, slots, count) in enumerate(zip(held, kept, counts, strict=True)):
        gone = torch.ones((heads, before), dtype=torch.bool, device=device).scatter_(1, slots, False)
        dropped[row, :, :count] = gone.nonzero()[:, 1].view(heads, count)
    return dropped


def victims(ops: Ops, paged: Paged, positions: Tensor, mass: Tensor | None, keep: Keep) -> Tensor:
    """Slots that the op ``evict`` is about to drop, one per KV head of a full row: ``[B, Hk, 1]`` int64, or -1.

    The op itself is asked, on copies and with one page per row in place of the entries: what it moves, it drops.
    """
    rows, pages = paged.table.shape
    k, v = (torch.zeros((rows, *paged.k.shape[1:]), dtype=paged.k.dtype, device=paged.k.device) for _ in "kv")
    table = torch.arange(rows, dtype=torch.int32, device=paged.k.device)[:, None].repeat(1, pages)
    after, mass = positions.clone(), None if mass is None else mass.clone()
    evict(ops, Paged(k, v, table, paged.lengths.clone()), after, mass, keep)
    moved = (after != positions)[:, :, : keep.entries]
    # The last entry takes the victim's slot, and where it is the victim itself, nothing moves.
    slots = torch.where(moved.any(2), moved.int().argmax(2), keep.entries)
    return torch.where((paged.lengths == keep.entries + 1)[:, None], slots, -1)[:, :, None]


def evict(ops: Ops, paged: Paged, positions: Tensor, mass: Tensor | None, keep: Keep) -> None:
    """Drop one entry per KV head of every full row."""
    ops.evict(
        paged,
        positions,
        mass if keep.by == "mass" else None,
        capacity=keep.entries,
        sinks=keep.sinks,
        recent=keep.recent,
        shared=keep.shared,
    )


def entries(paged: Paged, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values ``[B, Hk, n, D]`` of slots ``[B, Hk, n]``; zeros where a slot is -1."""
    safe = slots.clamp(min=0)
    pages = paged.table.long().gather(1, (safe // paged.page_size).flatten(1)).view(safe.shape)
    heads = torch.arange(paged.kv_heads, device=slots.device)[:, None]
    none = (slots < 0)[..., None]
    k, v = (x[pages, heads, safe % paged.page_size].masked_fill(none, 0) for x in (paged.k, paged.v))
    return k, v
