"""Append: entries land where they belong, lengths grow, bounds of touched pages are exact; nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DTYPES, empty_store, generator
from kernel_checks import check_append, check_append_from, entries

from questbench.kernels._bounds import LANES, read_bounds


@pytest.mark.parametrize("page_size", [4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("dim", [16, 64, 80, 96, 128, 256])
def test_prompts_and_steps(ops: Any, backend: Any, page_size: int, dim: int) -> None:
    dtype = backend.dtype(page_size // 4 + dim)
    most = backend.long(400) // 2
    store = empty_store(3, most // page_size + 3, heads=2, dim=dim, page_size=page_size, dtype=dtype)
    for seed, count in enumerate((1, page_size, page_size - 1, 1, 1, 70, 0, 2 * page_size + 1)):
        if int(store.lengths.max()) + count <= store.page_table.shape[1] * page_size:
            check_append(ops, store, *entries(store, count, seed))


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("held", [0, 1, 6, 7, 8])
def test_every_number_of_entries_from_every_slot(ops: Any, held: int, by_channel: bool) -> None:
    check_append_from(ops, held, by_channel)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bounds", [False, True])
def test_left_padding_takes_the_last_entries_of_each_row(ops: Any, dtype: torch.dtype, bounds: bool) -> None:
    store = empty_store(4, 8, heads=2, dim=64, page_size=8, dtype=dtype)
    for seed, new in enumerate(([20, 0, 1, 19], [0, 0, 0, 0], [3, 8, 1, 20])):
        check_append(ops, store, *entries(store, 20, seed), torch.tensor(new, dtype=torch.int32), bounds)
    assert store.lengths.tolist() == [23, 8, 2, 39]
    if not bounds:
        assert store.bounds.isnan().all()


@pytest.mark.parametrize("count", [1, 5, 40])
def test_entries_may_be_views_with_any_strides(ops: Any, backend: Any, count: int) -> None:
    store = empty_store(2, 12, heads=4, dim=64, page_size=16, dtype=torch.bfloat16)
    source = torch.randn((2, count, 3, 4, 64), generator=generator(1)).bfloat16()
    k, v = source[:, :, 1].transpose(1, 2), source[:, :, 2].transpose(1, 2)
    check_append(ops, store, k, v)
    check_append(ops, store, k.flip(0), v[:1].expand(2, -1, -1, -1))
    check_append(ops, store, k.transpose(-1, -2).contiguous().transpose(-1, -2), v)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_reach_the_bounds(ops: Any, dtype: torch.dtype) -> None:
    store = empty_store(1, 4, heads=1, dim=64, page_size=8, dtype=dtype)
    for step in range(20):
        k, v = entries(store, 1, step)
        k[0, 0, 0, step % 5] = (torch.nan, torch.inf, -torch.inf, -0.0)[step % 4]
        check_append(ops, store, k, v)


def test_a_row_that_was_cut_back_goes_on_from_the_bounds_it_has(ops: Any, backend: Any) -> None:
    store = empty_store(2, 4, heads=2, dim=64, page_size=16, dtype=backend.dtype(0))
    check_append(ops, store, *entries(store, 30))
    # A full page is left, and an open one whose bounds whoever cut it brought up to date.
    store.lengths.copy_(torch.tensor([16, 21]))
    page = int(store.page_table[1, 1])
    keys = store.k_pages[page, :, :5]
    store.bounds[page] = torch.stack([keys.amax(1), keys.amin(1)], dim=1)
    check_append(ops, store, *entries(store, 1, 1))


@pytest.mark.parametrize("page_size", [4, 16, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bounds_by_channel_of_the_pages_that_close(ops: Any, backend: Any, dtype: torch.dtype, page_size: int) -> None:
    store = empty_store(2, 70, heads=2, dim=64, page_size=page_size, dtype=dtype, by_channel=True)
    for seed, count in enumerate((page_size - 1, 1, 3, 2 * page_size, 0, min(64, backend.most // 33) * page_size)):
        check_append(ops, store, *entries(store, count, seed))
    closed = int(store.lengths[0]) // page_size
    for row in range(2):
        pages = store.page_table[row].long()
        keys = store.k_pages[pages[:closed]]
        assert torch.equal(read_bounds(store.bounds, pages[:closed]), torch.stack([keys.amax(2), keys.amin(2)], dim=2))
        assert read_bounds(store.bounds, pages[closed:]).isnan().all()
    assert store.bounds.shape == (-(-140 // LANES), 2, 64, 2, LANES)
