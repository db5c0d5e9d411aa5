"""Attention within its error budget, over storage types, head sizes, page sizes, groups and ragged lengths."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import DTYPES, check_attend, generator, make_query, make_store, random_lists

from questbench.kernels._ops import Ops

DIMS = (64, 96, 128, 256, 16, 32, 80, 40, 48, 72, 88, 104, 112, 120, 18, 30, 34, 62, 254)
PAGE_SIZES = (4, 8, 16, 32, 64, 128)
GROUPS = (1, 2, 4, 7, 8, 16)


def ragged(page_size: int) -> list[int]:
    """Empty, one entry, a full page, one more, and several chunks of entries."""
    return [1100, 0, 1, page_size, page_size + 1]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_storage_type_and_head_size(ops: Ops, dtype: torch.dtype, dim: int) -> None:
    at = DIMS.index(dim) + DTYPES.index(dtype)
    page_size, group = PAGE_SIZES[at % 6], GROUPS[(at + at // 6) % 6]
    store = make_store(ragged(page_size), heads=2, dim=dim, page_size=page_size, dtype=dtype, seed=at)
    q = make_query(store, group)
    check_attend(ops, store, q, dim**-0.5)
    for heads in (2, 2 * group):
        pages, counts = random_lists(store, heads, 200 // page_size + 2)
        check_attend(ops, store, q, dim**-0.5, pages=pages, counts=counts)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_every_page_size_and_group(ops: Ops, page_size: int, shift: int) -> None:
    at = PAGE_SIZES.index(page_size) + shift
    group = GROUPS[at % 6]
    lengths = [300, 0, 1, page_size, page_size + 1, 3 * page_size - 1]
    store = make_store(lengths, heads=2, dim=(64, 80)[at % 2], page_size=page_size, dtype=DTYPES[at % 3], seed=at)
    q = make_query(store, group)
    check_attend(ops, store, q, 0.125)
    for heads in (2, 2 * group):
        pages, counts = random_lists(store, heads, max(2, 300 // page_size))
        check_attend(ops, store, q, 0.125, pages=pages, counts=counts)


@pytest.mark.parametrize("listed", ["dense", "kv heads", "query heads"])
@pytest.mark.parametrize(
    ("softcap", "sinks", "prefix"),
    [(0.0, False, 1), (3.0, False, 0), (0.0, True, 0), (50.0, True, 5), (3.0, True, 37), (0.0, True, 5000)],
)
def test_softcap_sinks_and_prefix(ops: Ops, listed: str, softcap: float, sinks: bool, prefix: int) -> None:
    dtype = DTYPES[(prefix + len(listed)) % 3]
    store = make_store([1040, 0, 1, 16, 17, 100], heads=2, dim=32, page_size=16, dtype=dtype)
    q = make_query(store, 4)
    heads = {"dense": 0, "kv heads": 2, "query heads": 8}[listed]
    pages, counts = random_lists(store, heads, 4) if heads else (None, None)
    check_attend(
        ops,
        store,
        q,
        0.25,
        pages=pages,
        counts=counts,
        softcap=softcap,
        sinks=torch.randn(8, generator=generator(5)) * 3 if sinks else None,
        prefix_q=make_query(store, 4, seed=9) if prefix else None,
        prefix=prefix,
    )


@pytest.mark.parametrize("where", [0, 1023, 1024, 1500, 2047, 2048])
def test_one_entry_that_takes_all_is_found_in_every_chunk(ops: Ops, where: int) -> None:
    dtype = DTYPES[where % 3]
    store = make_store([2049], heads=1, dim=64, page_size=16, dtype=dtype)
    q = make_query(store, 2)
    page, slot = int(store.page_table[0, where // 16]), where % 16
    store.k_pages[page, 0, slot] = 4 * (q[0, 0] + q[0, 1])
    got = check_attend(ops, store, q, 1.0)
    assert torch.equal(got[0], store.v_pages[page, 0, slot].expand(2, -1))


def test_empty_rows_give_zeros_whatever_else_is_asked(ops: Ops) -> None:
    store = make_store([0, 0], heads=2, dim=64, page_size=16, dtype=torch.bfloat16)
    q = make_query(store, 2)
    pages, counts = random_lists(store, 2, 3)
    for options in ({}, {"pages": pages, "counts": counts}, {"sinks": torch.ones(4)}):
        assert torch.equal(ops.attend(q, store.paged, 0.125, **options), torch.zeros_like(q))


def test_a_query_may_be_a_strided_view(ops: Ops) -> None:
    store = make_store([70, 3], heads=2, dim=64, page_size=16, dtype=torch.float32)
    q = torch.randn((2, 3, 4, 64), generator=generator(3))[:, 1]
    assert torch.equal(ops.attend(q, store.paged, 0.1), ops.attend(q.contiguous(), store.paged, 0.1))
