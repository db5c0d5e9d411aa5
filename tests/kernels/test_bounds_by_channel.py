"""Bounds by channel: the same scores as by page from half the bytes, exact bounds of every page that closes."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import DTYPES, REFERENCE, UNIT, Store, empty_store, generator, make_query, make_store

from questbench.kernels._bounds import LANES, empty_bounds, read_bounds, write_bounds
from questbench.kernels._ops import Ops

DIMS = (64, 96, 128, 256, 16, 80)


def both(lengths: list[int], **shape: object) -> tuple[Store, Store]:
    """The same cache with its bounds in either layout."""
    return make_store(lengths, **shape, by_channel=True), make_store(lengths, **shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [1, 3])
def test_scores_are_those_by_page(ops: Ops, dtype: torch.dtype, dim: int, group: int) -> None:
    store, plain = both([70 * 8 + 3, 0, 1, 8, 9, 64 * 8 + 1], heads=2, dim=dim, page_size=8, dtype=dtype, seed=dim)
    q = make_query(store, group)
    got = ops.score(q, store.paged, skip_newest=True)
    want = REFERENCE.score(q.double(), plain.wide().paged, skip_newest=True)
    assert torch.equal(got == -torch.inf, want == -torch.inf)
    scored = want > -torch.inf
    largest = plain.bounds.double().abs().amax(2, keepdim=True).expand_as(plain.bounds).contiguous()
    magnitude = REFERENCE.score(q.double().abs(), plain.paged._replace(bounds=largest), skip_newest=True)[scored]
    assert ((got[scored].double() - want[scored]).abs() <= (dim + 2) * UNIT * magnitude).all()


def test_neighbours_and_scattered_pages_score_alike(ops: Ops) -> None:
    """Runs of neighbours, part of a block, a block's end inside: no path changes a bit."""
    store = make_store([300 * 4], heads=2, dim=64, page_size=4, dtype=torch.bfloat16, by_channel=True)
    used, q = store.page_table[0, :300].long(), make_query(store, 1)
    scores = []
    for start in (0, 5, 40, 64):
        moved = store.clone()
        moved.bounds = empty_bounds(400, 2, 64, torch.bfloat16, torch.device("cpu"), by_channel=True)
        for at, page in enumerate(used.tolist()):
            write_bounds(moved.bounds, start + at, read_bounds(store.bounds, torch.tensor([page]))[0])
        moved.page_table = torch.arange(start, start + 300, dtype=torch.int32)[None]
        scores.append(ops.score(q, moved.paged, skip_newest=True))
    scattered = ops.score(q, store.paged, skip_newest=True)
    assert all(torch.equal(one, scattered[:, :, :300]) for one in scores)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("query", [0.0, 1.0, -1.0, torch.nan])
def test_infinite_and_undefined_bounds(ops: Ops, value: float, query: float) -> None:
    store, plain = both([80], heads=2, dim=64, page_size=8, dtype=torch.float32)
    page = int(store.page_table[0, 3])
    bounds = read_bounds(store.bounds, torch.tensor([page]))[0]
    # A NaN among the keys is in both bounds.
    bounds[1, slice(None) if value != value else int(value < 0), 5] = value
    for target in (store, plain):
        write_bounds(target.bounds, page, bounds)
    q = make_query(store, 1)
    q[0, 1, 5] = query
    got, want = (backend.score(q, held.paged, skip_newest=True) for held, backend in ((store, ops), (plain, REFERENCE)))
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())


@pytest.mark.parametrize("page_size", [4, 16, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_append_sets_the_bounds_of_pages_that_close(ops: Ops, dtype: torch.dtype, page_size: int) -> None:
    store = empty_store(2, 70, heads=2, dim=32, page_size=page_size, dtype=dtype, by_channel=True)
    source = generator(0)
    for count in (page_size - 1, 1, 3, 2 * page_size, 0, 64 * page_size):
        k, v = torch.randn((2, 2, 2, count, 32), generator=source).to(dtype)
        ops.append(k, v, store.paged)
    closed = int(store.lengths[0]) // page_size
    for row in range(2):
        pages = store.page_table[row].long()
        keys = store.k_pages[pages[:closed]]
        want = torch.stack([keys.amax(2), keys.amin(2)], dim=2)
        assert torch.equal(read_bounds(store.bounds, pages[:closed]), want)
        assert read_bounds(store.bounds, pages[closed:]).isnan().all()
    assert store.bounds.shape == (-(-140 // LANES), 2, 32, 2, LANES)


def test_the_fused_step_equals_the_three_ops(ops: Ops) -> None:
    store = make_store([75 * 8 + 3, 0, 8, 9], heads=4, dim=64, page_size=8, dtype=torch.bfloat16, by_channel=True)
    q = make_query(store, 1)
    choice = {"count": 9, "width": 9, "force_newest": True, "merge": "sum_softmax"}
    got, want = ops.attend_top(q, store.paged, 0.125, **choice), Ops.attend_top(ops, q, store.paged, 0.125, **choice)
    assert torch.equal(got, want)


def test_an_open_page_cannot_be_scored() -> None:
    from questbench import kernels

    store = make_store([20], heads=2, dim=32, page_size=8, dtype=torch.float32, by_channel=True)
    with pytest.raises(ValueError, match="none for an open page"):
        kernels.load("cpu").score(make_query(store, 1), store.paged, skip_newest=False)
