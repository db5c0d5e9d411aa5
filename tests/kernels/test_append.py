"""Append: entries land where they belong, lengths grow, bounds of touched pages are exact; nothing else changes."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import DTYPES, REFERENCE, Store, empty_store, generator
from torch import Tensor

from questbench.kernels._ops import Ops


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, NaN included."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def both(ops: Ops, store: Store, k: Tensor, v: Tensor, new: Tensor | None = None, bounds: bool = True) -> Store:
    """One append by the backend and by the reference must leave the same cache."""
    want = store.clone()
    for backend, target in ((ops, store), (REFERENCE, want)):
        backend.append(k, v, target.paged if bounds else target.paged._replace(bounds=None), new)
    assert same(store.k_pages, want.k_pages)
    assert same(store.v_pages, want.v_pages)
    assert torch.equal(store.lengths, want.lengths)
    assert torch.allclose(store.bounds, want.bounds, rtol=0, atol=0, equal_nan=True)
    return store


def entries(store: Store, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rows, heads, dim = store.lengths.shape[0], store.k_pages.shape[1], store.k_pages.shape[3]
    both_kinds = torch.randn((2, rows, heads, count, dim), generator=generator(seed)).to(store.k_pages.dtype)
    return both_kinds[0], both_kinds[1]


@pytest.mark.parametrize("page_size", [4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("dim", [16, 64, 80, 96])
def test_prompts_and_steps(ops: Ops, page_size: int, dim: int) -> None:
    dtype = DTYPES[(page_size // 4 + dim) % 3]
    store = empty_store(3, 200 // page_size + 3, heads=2, dim=dim, page_size=page_size, dtype=dtype)
    for seed, count in enumerate((1, page_size, page_size - 1, 1, 1, 70, 0, 2 * page_size + 1)):
        if int(store.lengths.max()) + count <= store.page_table.shape[1] * page_size:
            both(ops, store, *entries(store, count, seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bounds", [False, True])
def test_left_padding_takes_the_last_entries_of_each_row(ops: Ops, dtype: torch.dtype, bounds: bool) -> None:
    store = empty_store(4, 8, heads=2, dim=64, page_size=8, dtype=dtype)
    for seed, new in enumerate(([20, 0, 1, 19], [0, 0, 0, 0], [3, 8, 1, 20])):
        k, v = entries(store, 20, seed)
        both(ops, store, k, v, torch.tensor(new, dtype=torch.int32), bounds)
    assert store.lengths.tolist() == [23, 8, 2, 39]
    if not bounds:
        assert store.bounds.isnan().all()


@pytest.mark.parametrize("count", [1, 5, 100])
def test_entries_may_be_views_with_any_strides(ops: Ops, count: int) -> None:
    store = empty_store(2, 24, heads=4, dim=64, page_size=16, dtype=torch.bfloat16)
    source = torch.randn((2, count, 3, 4, 64), generator=generator(1)).bfloat16()
    k, v = source[:, :, 1].transpose(1, 2), source[:, :, 2].transpose(1, 2)
    both(ops, store, k, v)
    both(ops, store, k.flip(0), v[:1].expand(2, -1, -1, -1))
    both(ops, store, k.transpose(-1, -2).contiguous().transpose(-1, -2), v)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_reach_the_bounds(ops: Ops, dtype: torch.dtype) -> None:
    store = empty_store(1, 4, heads=1, dim=32, page_size=8, dtype=dtype)
    for step in range(20):
        k, v = entries(store, 1, step)
        k[0, 0, 0, step % 5] = (torch.nan, torch.inf, -torch.inf, -0.0)[step % 4]
        both(ops, store, k, v)


def test_a_row_that_was_cut_back_goes_on_from_the_bounds_it_has(ops: Ops) -> None:
    store = empty_store(2, 4, heads=2, dim=64, page_size=16, dtype=torch.float32)
    both(ops, store, *entries(store, 30))
    # A full page is left, and an open one whose bounds whoever cut it brought up to date.
    store.lengths.copy_(torch.tensor([16, 21]))
    page = int(store.page_table[1, 1])
    keys = store.k_pages[page, :, :5]
    store.bounds[page] = torch.stack([keys.amax(1), keys.amin(1)], dim=1)
    both(ops, store, *entries(store, 1, 1))
