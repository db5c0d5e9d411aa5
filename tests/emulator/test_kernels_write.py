"""The shipped CUDA kernels that write, append and evict, in the block emulator: the same bytes as the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import REFERENCE, empty_store, generator, make_store
from test_append import both, entries
from test_evict import CAPACITY, LENGTHS, shuffled_positions
from test_evict import both as evicted_alike

HALVES = (torch.float16, torch.bfloat16)
SHAPES = [(64, 8), (64, 16), (128, 16), (128, 32), (256, 16), (64, 64)]
"""Head size and page size."""


@pytest.mark.parametrize(("dim", "page_size"), SHAPES)
def test_prompts_and_steps(ops: Any, dim: int, page_size: int) -> None:
    dtype = HALVES[(dim + page_size) // 8 % 2]
    store = empty_store(3, 110 // page_size + 6, heads=2, dim=dim, page_size=page_size, dtype=dtype)
    for seed, count in enumerate((1, page_size, page_size - 1, 1, 1, 70, 0, 2 * page_size + 1)):
        both(ops, store, *entries(store, count, seed))


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("held", [0, 1, 6, 7, 8])
def test_every_number_of_entries_from_every_slot(ops: Any, held: int, by_channel: bool) -> None:
    """Up to three pages are touched: more blocks than that, or fewer, would show."""
    for count in (*range(1, 12), 15, 16, 17, 18):
        store = empty_store(2, 5, heads=1, dim=64, page_size=8, dtype=torch.float16, by_channel=by_channel)
        both(ops, store, *entries(store, held))
        both(ops, store, *entries(store, count, 1))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("bounds", [False, True])
def test_left_padding_takes_the_last_entries_of_each_row(ops: Any, dtype: torch.dtype, bounds: bool) -> None:
    store = empty_store(4, 8, heads=2, dim=64, page_size=8, dtype=dtype)
    for seed, new in enumerate(([20, 0, 1, 19], [0, 0, 0, 0], [3, 8, 1, 20])):
        both(ops, store, *entries(store, 20, seed), torch.tensor(new, dtype=torch.int32), bounds)
    assert store.lengths.tolist() == [23, 8, 2, 39]


@pytest.mark.parametrize("count", [1, 5, 40])
def test_entries_may_be_views_with_any_strides(ops: Any, count: int) -> None:
    store = empty_store(2, 12, heads=4, dim=64, page_size=16, dtype=torch.bfloat16)
    source = torch.randn((2, count, 3, 4, 64), generator=generator(1)).bfloat16()
    k, v = source[:, :, 1].transpose(1, 2), source[:, :, 2].transpose(1, 2)
    both(ops, store, k, v)
    both(ops, store, k.flip(0), v[:1].expand(2, -1, -1, -1))
    both(ops, store, k.transpose(-1, -2).contiguous().transpose(-1, -2), v)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_nan_and_infinity_reach_the_bounds(ops: Any, dtype: torch.dtype) -> None:
    store = empty_store(1, 4, heads=1, dim=64, page_size=8, dtype=dtype)
    for step in range(20):
        k, v = entries(store, 1, step)
        k[0, 0, 0, step % 5] = (torch.nan, torch.inf, -torch.inf, -0.0)[step % 4]
        both(ops, store, k, v)


@pytest.mark.parametrize("page_size", [8, 16, 64])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_bounds_by_channel_of_the_pages_that_close(ops: Any, dtype: torch.dtype, page_size: int) -> None:
    store = empty_store(2, 70, heads=2, dim=64, page_size=page_size, dtype=dtype, by_channel=True)
    for seed, count in enumerate((page_size - 1, 1, 3, 2 * page_size, 0, 9 * page_size)):
        both(ops, store, *entries(store, count, seed))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("sinks", "recent"), [(0, 0), (4, 9), (20, 30)])
def test_the_victim_is_the_one_that_the_rule_names(
    ops: Any, shared: bool, weighted: bool, sinks: int, recent: int
) -> None:
    dim = (64, 128, 256)[(sinks + weighted) % 3]
    store = make_store(LENGTHS, heads=2, dim=dim, page_size=8, dtype=HALVES[sinks // 4 % 2])
    for seed in range(3):
        mass = torch.randint(0, 12, (len(LENGTHS), 2, CAPACITY + 4), generator=generator(seed)).float() / 4
        positions = shuffled_positions(shared, seed)
        evicted_alike(ops, store, positions, mass if weighted else None, sinks=sinks, recent=recent, shared=shared)


@pytest.mark.parametrize("shared", [False, True])
def test_nan_mass_counts_as_the_greatest(ops: Any, shared: bool) -> None:
    store = make_store(LENGTHS, heads=2, dim=64, page_size=16, dtype=torch.float16)
    positions = shuffled_positions(True, 1)
    mass = torch.full((len(LENGTHS), 2, CAPACITY + 4), torch.nan)
    evicted_alike(ops, store, positions, mass, sinks=0, recent=0, shared=shared)
    mass[:, :, 11], mass[:, :, 3] = 7.0, torch.inf
    evicted_alike(ops, store, positions, mass, sinks=0, recent=0, shared=shared)


def test_a_large_store_is_evicted_from(ops: Any) -> None:
    """More slots than a block has threads."""
    capacity = 2500
    store = make_store([capacity + 1], heads=2, dim=64, page_size=16, dtype=torch.bfloat16)
    order = torch.randperm(capacity, generator=generator(1))
    positions = torch.cat([order, torch.tensor([capacity])]).to(torch.int32).expand(1, 2, -1).contiguous()
    mass = torch.rand((1, 2, capacity + 1), generator=generator(2))
    mass[0, 0, 2400], mass[0, 1, 2499] = -1.0, -1.0
    want = store.clone()
    got_rest, want_rest = ([positions.clone(), mass.clone()] for _ in range(2))
    for backend, held, rest in ((ops, store, got_rest), (REFERENCE, want, want_rest)):
        backend.evict(held.paged, *rest, capacity=capacity, sinks=4, recent=0, shared=False)
    assert torch.equal(got_rest[0], want_rest[0]) and torch.equal(got_rest[1], want_rest[1])
    assert torch.equal(store.entries(store.k_pages, 0), want.entries(want.k_pages, 0))
