"""Attention within its error budget, over storage types, head sizes, page sizes, groups, ragged lengths and lists."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DTYPES, check_attend, generator, make_query, make_store, random_lists
from kernel_checks import LISTED, lists, ragged, some_tokens

DIMS = (64, 96, 128, 256, 16, 32, 80, 40, 48, 72, 88, 104, 112, 120, 18, 30, 34, 62, 254)
PAGE_SIZES = (4, 8, 16, 32, 64, 128)
GROUPS = (1, 2, 4, 7, 8, 16)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_storage_type_and_head_size(ops: Any, backend: Any, dtype: torch.dtype, dim: int) -> None:
    at = DIMS.index(dim) + DTYPES.index(dtype)
    page_size, group = PAGE_SIZES[at % 6], GROUPS[(at + at // 6) % 6]
    # Beyond one chunk of the cpu's kernels in one storage type of each head size.
    lengths = ragged(page_size, backend.long(1100 if at % 3 == 0 else 250))
    store = make_store(lengths, heads=2, dim=dim, page_size=page_size, dtype=dtype, seed=at)
    q = make_query(store, group)
    check_attend(ops, store, q, dim**-0.5)
    for heads in (2, 2 * group):
        pages, counts = random_lists(store, heads, 200 // page_size + 2)
        check_attend(ops, store, q, dim**-0.5, pages=pages, counts=counts)
        tokens, counts = some_tokens(store, heads, 100)
        check_attend(ops, store, q, dim**-0.5, tokens=tokens, counts=counts)


@pytest.mark.parametrize(
    ("page_size", "group"),
    [
        *zip(PAGE_SIZES, GROUPS, strict=True),
        *zip(PAGE_SIZES, (*GROUPS[2:], *GROUPS[:2]), strict=True),
        (16, 3),
        (16, 12),
    ],
)
def test_every_page_size_and_group(ops: Any, backend: Any, page_size: int, group: int) -> None:
    at = page_size // 8 + group
    lengths = ragged(page_size, min(4 * page_size + 3, backend.long(300)))
    store = make_store(lengths, heads=2, dim=64, page_size=page_size, dtype=backend.dtype(at), seed=at)
    q = make_query(store, group)
    check_attend(ops, store, q, 0.125)
    for heads, count in ((2, 1), (2, 6), (2 * group, 3)):  # one page, all, some
        pages, counts = random_lists(store, heads, count)
        check_attend(ops, store, q, 0.125, pages=pages, counts=counts)


@pytest.mark.parametrize("listed", LISTED)
@pytest.mark.parametrize(
    ("softcap", "sinks", "prefix"),
    [(0.0, False, 1), (3.0, False, 0), (0.0, True, 0), (50.0, True, 5), (3.0, True, 37), (0.0, True, 5000)],
)
def test_softcap_sinks_and_prefix(
    ops: Any, backend: Any, listed: str, softcap: float, sinks: bool, prefix: int
) -> None:
    dtype = backend.dtype(prefix + len(listed))
    lengths = [backend.long(1040), 0, 1, 16, 17, 100]
    store = make_store(lengths, heads=2, dim=backend.dim(32), page_size=16, dtype=dtype)
    options: dict[str, Any] = {"softcap": softcap, "prefix": prefix, **lists(store, listed, 4)}
    options["sinks"] = torch.randn(8, generator=generator(5)) * 3 if sinks else None
    options["prefix_q"] = make_query(store, 4, seed=9) if prefix else None
    check_attend(ops, store, make_query(store, 4), 0.25, **options)


@pytest.mark.parametrize("group", [1, 4])
def test_long_rows_and_lists(ops: Any, backend: Any, group: int) -> None:
    """Several chunks of the cpu's, several blocks of a GPU."""
    store = make_store([2300, 5, 1024], heads=2, dim=64, page_size=16, dtype=backend.dtype(group))
    q = make_query(store, group)
    check_attend(ops, store, q, 0.125)
    pages, counts = random_lists(store, 2, 90)
    check_attend(ops, store, q, 0.125, pages=pages, counts=counts)
    tokens, counts = some_tokens(store, 2, 1200)
    check_attend(ops, store, q, 0.125, tokens=tokens, counts=counts)


@pytest.mark.parametrize("where", [0, 127, 128, 1023, 1024, 1500, 2047, 2048])
def test_one_entry_that_takes_all_is_found_in_every_chunk(ops: Any, backend: Any, where: int) -> None:
    length = backend.long(2049)
    store, where = make_store([length], heads=1, dim=64, page_size=16, dtype=backend.dtype(where)), where % length
    q = make_query(store, 2)
    page, slot = int(store.page_table[0, where // 16]), where % 16
    store.k_pages[page, 0, slot] = 4 * (q[0, 0] + q[0, 1])
    got = check_attend(ops, store, q, 1.0)
    assert torch.equal(got[0], store.v_pages[page, 0, slot].expand(2, -1))


def test_empty_rows_give_zeros_whatever_else_is_asked(ops: Any) -> None:
    store = make_store([0, 0], heads=2, dim=64, page_size=16, dtype=torch.bfloat16)
    q = make_query(store, 2)
    for options in ({}, lists(store, "kv heads"), lists(store, "tokens of kv heads"), {"sinks": torch.ones(4)}):
        assert torch.equal(ops.attend(q, store.paged, 0.125, **options), torch.zeros_like(q))


@pytest.mark.parametrize("per", ["kv heads", "query heads"])
def test_lists_of_all_tokens_give_what_pages_give(ops: Any, backend: Any, per: str) -> None:
    """The same entries in the same order: the same sums, but for where a tile begins."""
    store = make_store([200, 33, 0], heads=2, dim=64, page_size=16, dtype=backend.dtype(1))
    q, options = make_query(store, 4), lists(store, per)
    shown = torch.full((3, options["pages"].shape[1], options["pages"].shape[2] * 16), -1, dtype=torch.int32)
    counts = torch.zeros(shown.shape[:2], dtype=torch.int32)
    for row, length in enumerate(store.lengths.tolist()):
        for head in range(shown.shape[1]):
            named = options["pages"][row, head, : int(options["counts"][row, head])]
            slots = (named[:, None] * 16 + torch.arange(16, dtype=torch.int32)).flatten()
            slots = slots[slots < length]
            shown[row, head, : len(slots)] = slots
            counts[row, head] = len(slots)
    got = check_attend(ops, store, q, 0.125, tokens=shown, counts=counts)
    torch.testing.assert_close(got, ops.attend(q, store.paged, 0.125, **options), rtol=2e-2, atol=2e-3)


def test_a_query_may_be_a_strided_view(ops: Any, backend: Any) -> None:
    store = make_store([70, 3], heads=2, dim=64, page_size=16, dtype=backend.dtype(0))
    q = torch.randn((2, 3, 4, 64), generator=generator(3)).to(backend.dtype(0))[:, 1]
    assert torch.equal(ops.attend(q, store.paged, 0.1), ops.attend(q.contiguous(), store.paged, 0.1))
