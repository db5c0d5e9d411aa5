"""Page scores: within their error budget, above every q . k of the page, -inf where nothing is to be scored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DTYPES, REFERENCE, UNIT, empty_store, make_query, make_store
from kernel_checks import check_neighbours, check_score, check_table_width

from questbench import kernels
from questbench.kernels._bounds import read_bounds, write_bounds

DIMS = (64, 96, 128, 256, 16, 32, 80, 40, 48, 72, 88, 104, 112, 120, 18, 30, 34, 62, 254)
PAGE_SIZES = (4, 8, 16, 32, 64, 128)
GROUPS = (1, 2, 4, 7, 8, 16)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_storage_type_and_head_size(ops: Any, dtype: torch.dtype, dim: int) -> None:
    at = DIMS.index(dim) + DTYPES.index(dtype)
    size = PAGE_SIZES[at % 6]
    lengths = [70 * size + 3, 0, 1, size, size + 1]
    store = make_store(lengths, heads=2, dim=dim, page_size=size, dtype=dtype, seed=at)
    for skip_newest in (False, True):
        check_score(ops, store, make_query(store, GROUPS[(at + at // 6) % 6]), skip_newest)


@pytest.mark.parametrize("group", [*GROUPS, 3, 12])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_score_is_at_least_every_product_in_the_page(ops: Any, dtype: torch.dtype, group: int) -> None:
    store = make_store([150, 7, 33], heads=2, dim=64, page_size=8, dtype=dtype, seed=group)
    q = make_query(store, group)
    scores = check_score(ops, store, q, skip_newest=False)
    slack = 130 * UNIT * 64 * float(q.double().abs().max() * 5)
    for row, length in enumerate(store.lengths.tolist()):
        keys = store.entries(store.k_pages, row).double().repeat_interleave(group, dim=0)
        products = torch.einsum("hd,htd->ht", q[row].double(), keys)
        for page in range(-(-length // 8)):
            assert (scores[row, :, page] + slack >= products[:, page * 8 : page * 8 + 8].amax(1)).all()


def test_pages_in_order_and_pages_scattered_score_alike(ops: Any) -> None:
    store = make_store([300], heads=2, dim=64, page_size=4, dtype=torch.bfloat16)
    used = store.page_table[0, :75].long()
    ordered = store.clone()
    ordered.bounds[:75] = store.bounds[used]
    ordered.page_table = torch.arange(store.page_table.shape[1], dtype=torch.int32)[None]
    q = make_query(store, 4)
    a, b = (ops.score(q, one.paged, skip_newest=True) for one in (store, ordered))
    assert torch.equal(a, b)


@pytest.mark.parametrize("group", [1, 2, 8])
def test_nan_and_infinity_show_in_the_scores_they_touch(ops: Any, backend: Any, group: int) -> None:
    store = make_store([40, 40, 24], heads=2, dim=64, page_size=8, dtype=backend.dtype(-1))
    q = make_query(store, group)
    store.bounds[int(store.page_table[0, 3]), 1, :, 5] = torch.nan
    store.bounds[int(store.page_table[2, 1]), 0, 0, 9] = torch.inf
    q[1, 0, 7] = torch.nan
    q[2, :, 9] = 1.0
    got = ops.score(q, store.paged, skip_newest=False)
    want = REFERENCE.score(q, store.paged, skip_newest=False)
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isposinf(), want.isposinf())
    assert got[0, group:, 3].isnan().all() and got[1, 0, :5].isnan().all()


# ---- Bounds by channel: the same scores from half the bytes ----------------------------------------------------------


@pytest.mark.parametrize("dim", [64, 96, 128, 256, 16, 80])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_from_bounds_by_channel(ops: Any, backend: Any, dtype: torch.dtype, dim: int) -> None:
    lengths = [70 * 8 + 3, 0, 1, 8, 9, 64 * 8 + 1]
    shape: dict[str, Any] = {"heads": 2, "dim": dim, "page_size": 8, "dtype": dtype, "seed": dim}
    store, plain = make_store(lengths, **shape, by_channel=True), make_store(lengths, **shape)
    for group in (1, 3) if backend.name == "cpu" else (1,):
        check_score(ops, store, make_query(store, group), True, plain)


@pytest.mark.parametrize("start", [0, 64, 5, 40])
@pytest.mark.parametrize("dim", [64, 128])
def test_neighbours_by_channel(ops: Any, backend: Any, start: int, dim: int) -> None:
    check_neighbours(ops, start, dim, backend.dtype(start))


def test_neighbours_and_scattered_pages_score_alike(ops: Any) -> None:
    """Runs of neighbours, part of a block, a block's end inside: no path changes a bit."""
    store = make_store([300 * 4], heads=2, dim=64, page_size=4, dtype=torch.bfloat16, by_channel=True)
    used, q = store.page_table[0, :300].long(), make_query(store, 1)
    scores = []
    for start in (0, 5, 40, 64):
        moved = empty_store(1, 400, heads=2, dim=64, page_size=4, dtype=torch.bfloat16, by_channel=True)
        for at, page in enumerate(used.tolist()):
            write_bounds(moved.bounds, start + at, read_bounds(store.bounds, torch.tensor([page]))[0])
        moved.page_table = torch.arange(start, start + 300, dtype=torch.int32)[None]
        moved.lengths = store.lengths
        scores.append(ops.score(q, moved.paged, skip_newest=True))
    scattered = ops.score(q, store.paged, skip_newest=True)
    assert all(torch.equal(one, scattered[:, :, :300]) for one in scores)


@pytest.mark.parametrize("pages", [1, 15, 16, 17, 63, 64, 65, 128, 129])
@pytest.mark.parametrize("by_channel", [False, True])
def test_every_width_of_the_page_table(ops: Any, pages: int, by_channel: bool) -> None:
    check_table_width(ops, pages, by_channel)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("query", [0.0, 1.0, -1.0, torch.nan])
def test_infinite_and_undefined_bounds(ops: Any, backend: Any, value: float, query: float) -> None:
    shape: dict[str, Any] = {"heads": 2, "dim": 64, "page_size": 8, "dtype": backend.dtype(0)}
    store, plain = make_store([80], **shape, by_channel=True), make_store([80], **shape)
    page = int(store.page_table[0, 3])
    bounds = read_bounds(store.bounds, torch.tensor([page]))[0]
    # A NaN among the keys is in both bounds.
    bounds[1, slice(None) if value != value else int(value < 0), 5] = value
    for target in (store, plain):
        write_bounds(target.bounds, page, bounds)
    q = make_query(store, 1)
    q[0, 1, 5] = query
    got, want = ops.score(q, store.paged, skip_newest=True), REFERENCE.score(q, plain.paged, skip_newest=True)
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())


def test_an_open_page_cannot_be_scored_by_channel(ops: Any, backend: Any) -> None:
    store = make_store([20], heads=2, dim=64, page_size=8, dtype=backend.dtype(0), by_channel=True)
    with pytest.raises(ValueError, match="none for an open page"):
        ops.score(make_query(store, 1), store.paged, skip_newest=False)


def test_groups_beyond_the_kernels_room_are_refused():
    """The cpu kernels have arrays of fixed size: a larger group is an error, not an overflow."""
    store = make_store([1], heads=1, dim=16, page_size=4, dtype=torch.float32)
    with pytest.raises(ValueError, match="groups of 1 to 256"):
        kernels.load("cpu").score(torch.zeros(1, 257, 16), store.paged, skip_newest=False)
