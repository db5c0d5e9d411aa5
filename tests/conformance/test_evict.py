"""Evict: the victim that the rule names, the last entry in its slot, every other byte as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import generator, make_store
from kernel_checks import CAPACITY, HELD, check_evict, quarters, same, shuffled_positions


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("sinks", "recent"), [(0, 0), (4, 0), (0, 9), (4, 9), (20, 30)])
def test_the_victim_is_the_one_that_the_rule_names(
    ops: Any, backend: Any, shared: bool, weighted: bool, sinks: int, recent: int
) -> None:
    dim = backend.dim((32, 64, 128, 256)[(sinks + weighted) % 4])
    store = make_store(HELD, heads=2, dim=dim, page_size=8, dtype=backend.dtype(sinks + recent))
    for seed in range(3):
        mass = quarters(seed) if weighted else None
        check_evict(ops, store, shuffled_positions(shared, seed), mass, sinks=sinks, recent=recent, shared=shared)


@pytest.mark.parametrize("shared", [False, True])
def test_nan_mass_counts_as_the_greatest(ops: Any, backend: Any, shared: bool) -> None:
    store = make_store(HELD, heads=2, dim=64, page_size=16, dtype=backend.dtype(0))
    positions = shuffled_positions(True, 1)
    mass = torch.full((len(HELD), 2, CAPACITY + 4), torch.nan)
    check_evict(ops, store, positions, mass, sinks=0, recent=0, shared=shared)
    mass[:, :, 11], mass[:, :, 3] = 7.0, torch.inf
    check_evict(ops, store, positions, mass, sinks=0, recent=0, shared=shared)


def test_rows_that_are_not_over_capacity_keep_every_bit(ops: Any) -> None:
    store = make_store(HELD, heads=2, dim=64, page_size=16, dtype=torch.bfloat16)
    got = check_evict(ops, store, shuffled_positions(True, 2), None, sinks=2, recent=3, shared=True)
    assert got.lengths.tolist() == [CAPACITY, CAPACITY, 5, CAPACITY]
    for row in (1, 2):
        assert same(got.entries(got.k_pages, row), store.entries(store.k_pages, row))


def test_the_last_entry_moves_into_the_slot_of_the_oldest(ops: Any, backend: Any) -> None:
    store = make_store([CAPACITY + 1], heads=1, dim=64, page_size=8, dtype=backend.dtype(0))
    before = store.clone()
    positions = torch.arange(CAPACITY + 1, dtype=torch.int32).view(1, 1, -1).clone()
    ops.evict(store.paged, positions, None, capacity=CAPACITY, sinks=4, recent=8, shared=False)
    want = before.entries(before.k_pages, 0)[:, :CAPACITY].clone()
    want[:, 4] = before.entries(before.k_pages, 0)[:, CAPACITY]
    assert torch.equal(store.entries(store.k_pages, 0), want)
    assert positions[0, 0, 4] == CAPACITY and store.lengths.tolist() == [CAPACITY]


def test_a_large_store_is_evicted_from(ops: Any) -> None:
    """More slots than a block of a GPU has threads."""
    capacity = 2500
    store = make_store([capacity + 1], heads=2, dim=64, page_size=16, dtype=torch.bfloat16)
    order = torch.randperm(capacity, generator=generator(1))
    positions = torch.cat([order, torch.tensor([capacity])]).to(torch.int32).expand(1, 2, -1).contiguous()
    mass = torch.rand((1, 2, capacity + 1), generator=generator(2))
    mass[0, 0, 2400], mass[0, 1, 2499] = -1.0, -1.0
    check_evict(ops, store, positions, mass, capacity=capacity, sinks=4, recent=0, shared=False)


@pytest.mark.parametrize("shared", [False, True])
def test_of_equal_masses_far_apart_the_oldest_goes(ops: Any, shared: bool) -> None:
    """Work enough to be shared among threads, and equals in every part of the store."""
    capacity, heads = 2000, 5
    store = make_store([capacity + 1, 9], heads=heads, dim=64, page_size=16, dtype=torch.float16)
    order = torch.randperm(capacity, generator=generator(3))
    positions = torch.cat([order, torch.tensor([capacity])]).to(torch.int32).expand(2, heads, -1).contiguous()
    mass = torch.randint(1, 9, (2, heads, capacity + 1), generator=generator(4)).float()
    for weights in (mass, torch.ones_like(mass), None):
        check_evict(ops, store, positions, weights, capacity=capacity, sinks=4, recent=50, shared=shared)
