"""Checks of quantize, estimate and prune over any backend: against ``reference`` and float64, within error budgets."""

from __future__ import annotations

from typing import Any

import torch
from kernel_cases import REFERENCE, UNIT, Store
from torch import Tensor

from questbench.kernels._codes import empty_codes, widened_codes
from questbench.kernels.reference import _listed


def coded(ops: Any, store: Store, spare: int = 2) -> tuple[Tensor, Tensor]:
    """Codes of all entries of a store; slots behind them are left alone."""
    rows, heads = len(store.lengths), store.k_pages.shape[1]
    longest = int(store.lengths.max())
    codes, ranges = empty_codes(rows, heads, longest + spare, store.k_pages.shape[3], store.k_pages.device)
    ops.quantize(store.paged, codes.fill_(0x5A), ranges.fill_(7.0), longest, store.lengths)
    return codes, ranges


def check_quantize(ops: Any, store: Store) -> tuple[Tensor, Tensor]:
    """The bits that the specification gives, for all entries and for the newest."""
    want = coded(REFERENCE, store)
    got = coded(ops, store)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.nan_to_num(99), b.nan_to_num(99))
    again = [torch.zeros_like(part) for part in want], [torch.zeros_like(part) for part in want]
    for one, into in ((ops, again[0]), (REFERENCE, again[1])):
        one.quantize(store.paged, *into, 3)
    assert all(torch.equal(a.nan_to_num(99), b.nan_to_num(99)) for a, b in zip(*again, strict=True))
    return got


def check_estimate(ops: Any, store: Store, q: Tensor, lists: tuple[Tensor, Tensor], softcap: float = 0.0) -> Tensor:
    """Logits within D roundings of the products that are summed, and of what comes after."""
    codes, ranges = coded(REFERENCE, store)
    about = store.lengths, store.page_size, *lists, q.shape[2] ** -0.5, softcap
    got = ops.estimate(q, codes, ranges, *about)
    want = REFERENCE.estimate(q.double(), codes, ranges.double(), *about)
    assert got.dtype == torch.float32 and got.shape == want.shape
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got == -torch.inf, want == -torch.inf)
    steps, lows = ranges.double().nan_to_num(0).abs().unbind(-1)
    widest = (widened_codes(codes, q.shape[2]).double() * steps[..., None] + lows[..., None]).amax((2, 3))
    sums = q.double().abs().sum(-1) * widest.repeat_interleave(q.shape[1] // widest.shape[1], dim=1)
    budget = UNIT * (2 * q.shape[2] + 12) * about[4] * sums + 8 * UNIT * softcap
    finite = want.isfinite()
    assert ((got.double() - want).abs() <= budget[..., None])[finite].all()
    return got


def check_prune(ops: Any, store: Store, logits: Tensor, lists: tuple[Tensor, Tensor], p: float) -> Tensor:
    """A smallest set, up to the rounding of an fp32 softmax; the counts."""
    tokens, counts = ops.prune(logits, store.lengths, store.page_size, *lists, p)
    pages, listed = lists
    grouped = logits.unflatten(1, (pages.shape[1], -1))
    for row in range(len(logits)):
        for head in range(pages.shape[1]):
            slots = _listed(pages[row, head], int(listed[row, head]), int(store.lengths[row]), store.page_size)
            taken = tokens[row, head, : counts[row, head]].long()
            assert (tokens[row, head, len(taken) :] == -1).all() and (taken.diff() > 0).all()
            inside = torch.isin(slots, taken)
            assert int(inside.sum()) == len(taken)
            if len(slots):
                check_smallest(grouped[row, head, :, : len(slots)], inside, p)
    return counts


def check_smallest(logits: Tensor, inside: Tensor, p: float) -> None:
    """Whether the entries inside hold a share p of the mass, and could not be fewer."""
    known = logits < torch.inf
    finite = torch.where(known, logits, -torch.inf).double()
    mass = torch.softmax(finite, dim=-1).nan_to_num(0).mean(0)
    defined = known.all(0)
    assert inside[~defined].all(), "what is undefined is always read"
    mass, chosen = mass[defined], inside[defined]
    spread = float(finite[finite.isfinite()].abs().max()) if finite.isfinite().any() else 0.0
    slack = UNIT * (4 * spread + 2 * len(mass) + 32)
    rounding = 2.0**-30
    total = float(mass.sum())
    if total == 0:
        assert chosen.tolist() == [at == 0 and bool(defined.all()) for at in range(len(mass))]
        return
    kept = float(mass[chosen].sum())
    assert kept >= p * total - slack - rounding * len(mass)
    if chosen.any():
        least = float(mass[chosen].min())
        assert kept - least <= p * total + slack + rounding * len(mass)
        if not chosen.all():
            assert least >= float(mass[~chosen].max()) * (1 - slack) - rounding
    # Equals go to the lower place: their logits are the same in every head.
    columns = logits[:, defined].T
    for at in (~chosen).nonzero()[:, 0].tolist():
        assert not chosen[at + 1 :][(columns[at + 1 :] == columns[at]).all(1)].any()
