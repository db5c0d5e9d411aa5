"""Evict: the victim that the rule names, the last entry in its slot, every other byte as it was."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import DTYPES, REFERENCE, Store, generator, make_store
from test_append import same
from torch import Tensor

from questbench.kernels._ops import Ops

CAPACITY = 37
LENGTHS = [CAPACITY + 1, CAPACITY, 5, CAPACITY + 1]


def shuffled_positions(shared: bool, seed: int) -> Tensor:
    """Slots hold positions in any order, the newest last."""
    source = generator(seed)
    positions = torch.zeros((len(LENGTHS), 2, CAPACITY + 4), dtype=torch.int32)
    for row, length in enumerate(LENGTHS):
        for head in range(2):
            order = torch.randperm(length + 60, generator=source)[: length - 1]
            positions[row, head, :length] = torch.cat([order, torch.tensor([length + 60])]).to(torch.int32)
        if shared:
            positions[row, 1] = positions[row, 0]
    return positions


def both(ops: Ops, store: Store, positions: Tensor, mass: Tensor | None, **options: int) -> Store:
    """The backend and the reference must leave the same bytes."""
    left = []
    for backend in (ops, REFERENCE):
        copy, places = store.clone(), positions.clone()
        weights = None if mass is None else mass.clone()
        backend.evict(copy.paged, places, weights, capacity=CAPACITY, **options)  # type: ignore[arg-type]
        left.append((copy, places, weights))
    (got, got_places, got_mass), (want, want_places, want_mass) = left
    assert same(got.k_pages, want.k_pages) and same(got.v_pages, want.v_pages)
    assert torch.equal(got.lengths, want.lengths) and torch.equal(got_places, want_places)
    if got_mass is not None and want_mass is not None:
        assert same(got_mass, want_mass)
    return got


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("sinks", "recent"), [(0, 0), (4, 0), (0, 9), (4, 9), (20, 30)])
def test_the_rule(ops: Ops, shared: bool, weighted: bool, sinks: int, recent: int) -> None:
    store = make_store(LENGTHS, heads=2, dim=32, page_size=8, dtype=DTYPES[(sinks + recent) % 3])
    for seed in range(4):
        # Quarters, so that sums over heads are exact and many are equal.
        mass = torch.randint(0, 12, (len(LENGTHS), 2, CAPACITY + 4), generator=generator(seed)).float() / 4
        positions = shuffled_positions(shared, seed)
        both(ops, store, positions, mass if weighted else None, sinks=sinks, recent=recent, shared=shared)


@pytest.mark.parametrize("shared", [False, True])
def test_nan_mass_counts_as_the_greatest(ops: Ops, shared: bool) -> None:
    store = make_store(LENGTHS, heads=2, dim=32, page_size=8, dtype=torch.float32)
    positions = shuffled_positions(True, 1)
    mass = torch.full((len(LENGTHS), 2, CAPACITY + 4), torch.nan)
    both(ops, store, positions, mass, sinks=0, recent=0, shared=shared)
    mass[:, :, 11], mass[:, :, 3] = 7.0, torch.inf
    both(ops, store, positions, mass, sinks=0, recent=0, shared=shared)


def test_rows_that_are_not_over_capacity_keep_every_bit(ops: Ops) -> None:
    store = make_store(LENGTHS, heads=2, dim=64, page_size=16, dtype=torch.bfloat16)
    positions = shuffled_positions(True, 2)
    got = both(ops, store, positions, None, sinks=2, recent=3, shared=True)
    assert got.lengths.tolist() == [CAPACITY, CAPACITY, 5, CAPACITY]
    for row in (1, 2):
        assert same(got.entries(got.k_pages, row), store.entries(store.k_pages, row))


def test_the_last_entry_moves_into_the_slot_of_the_oldest(ops: Ops) -> None:
    store = make_store([CAPACITY + 1], heads=1, dim=16, page_size=8, dtype=torch.float32)
    before = store.clone()
    positions = torch.arange(CAPACITY + 1, dtype=torch.int32).view(1, 1, -1).clone()
    ops.evict(store.paged, positions, None, capacity=CAPACITY, sinks=4, recent=8, shared=False)
    want = before.entries(before.k_pages, 0)[:, :CAPACITY].clone()
    want[:, 4] = before.entries(before.k_pages, 0)[:, CAPACITY]
    assert torch.equal(store.entries(store.k_pages, 0), want)
    assert positions[0, 0, 4] == CAPACITY and store.lengths.tolist() == [CAPACITY]
