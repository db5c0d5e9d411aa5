"""Page scores: within their error budget, above every q . k of the page, -inf where nothing is to be scored."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import DTYPES, REFERENCE, UNIT, Store, make_query, make_store
from torch import Tensor

from questbench import kernels
from questbench.kernels._ops import Ops

DIMS = (64, 96, 128, 256, 16, 32, 80, 40, 48, 72, 88, 104, 112, 120, 18, 30, 34, 62, 254)
PAGE_SIZES = (4, 8, 16, 32, 64, 128)
GROUPS = (1, 2, 4, 7, 8, 16)


def check(ops: Ops, store: Store, q: Tensor, skip_newest: bool) -> Tensor:
    """Scores within D roundings (and the last addition) of float64; -inf exactly where it is there."""
    wide = store.wide()
    got = ops.score(q, store.paged, skip_newest=skip_newest)
    want = REFERENCE.score(q.double(), wide.paged, skip_newest=skip_newest)
    largest = wide.bounds.abs().amax(2, keepdim=True).expand_as(wide.bounds).contiguous()
    magnitude = REFERENCE.score(q.double().abs(), wide.paged._replace(bounds=largest), skip_newest=skip_newest)
    assert got.dtype == torch.float32 and got.shape == want.shape
    assert torch.equal(got == -torch.inf, want == -torch.inf)
    scored = want > -torch.inf
    budget = (2 * q.shape[-1] + 2) * UNIT * magnitude[scored]
    assert ((got[scored].double() - want[scored]).abs() <= budget).all()
    return got


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("skip_newest", [False, True])
def test_every_storage_type_and_head_size(ops: Ops, dtype: torch.dtype, dim: int, skip_newest: bool) -> None:
    at = DIMS.index(dim) + DTYPES.index(dtype)
    size = PAGE_SIZES[at % 6]
    lengths = [70 * size + 3, 0, 1, size, size + 1]
    store = make_store(lengths, heads=2, dim=dim, page_size=size, dtype=dtype, seed=at)
    check(ops, store, make_query(store, GROUPS[(at + at // 6) % 6]), skip_newest)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_score_is_at_least_every_product_in_the_page(ops: Ops, dtype: torch.dtype, group: int) -> None:
    store = make_store([150, 7, 33], heads=2, dim=64, page_size=8, dtype=dtype, seed=group)
    q = make_query(store, group)
    scores = check(ops, store, q, skip_newest=False)
    slack = 130 * UNIT * 64 * float(q.double().abs().max() * 5)
    for row, length in enumerate(store.lengths.tolist()):
        keys = store.entries(store.k_pages, row).double().repeat_interleave(group, dim=0)
        products = torch.einsum("hd,htd->ht", q[row].double(), keys)
        for page in range(-(-length // 8)):
            assert (scores[row, :, page] + slack >= products[:, page * 8 : page * 8 + 8].amax(1)).all()


def test_pages_in_order_and_pages_scattered_score_alike(ops: Ops) -> None:
    store = make_store([300], heads=2, dim=64, page_size=4, dtype=torch.bfloat16)
    used = store.page_table[0, :75].long()
    ordered = store.clone()
    ordered.bounds[:75] = store.bounds[used]
    ordered.page_table = torch.arange(store.page_table.shape[1], dtype=torch.int32)[None]
    q = make_query(store, 4)
    a, b = (ops.score(q, s.paged, skip_newest=True) for s in (store, ordered))
    assert torch.equal(a, b)


def test_nan_in_bounds_or_query_shows_in_the_scores_it_touches(ops: Ops) -> None:
    store = make_store([40, 40], heads=2, dim=64, page_size=8, dtype=torch.float32)
    q = make_query(store, 2)
    store.bounds[int(store.page_table[0, 3]), 1, :, 5] = torch.nan
    q[1, 0, 7] = torch.nan
    got = ops.score(q, store.paged, skip_newest=False)
    want = REFERENCE.score(q, store.paged, skip_newest=False)
    assert torch.equal(got.isnan(), want.isnan())
    assert got[0, 2:, 3].isnan().all() and got[1, 0, :5].isnan().all()


def test_groups_beyond_the_kernels_room_are_refused():
    """The cpu kernels have arrays of fixed size: a larger group is an error, not an overflow."""
    ops = kernels.load("cpu")
    store = make_store([1], heads=1, dim=16, page_size=4, dtype=torch.float32)
    with pytest.raises(ValueError, match="groups of 1 to 256"):
        ops.score(torch.zeros(1, 257, 16), store.paged, skip_newest=False)
