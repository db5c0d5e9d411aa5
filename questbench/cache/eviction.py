"""Which entries survive when many are dropped at once, after a prefill; one at a time is the op ``evict``."""

from __future__ import annotations

import torch
from torch import Tensor

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
