"""Everything the CUDA kernels promise, op by op, within the error budgets of tests/kernels."""

from __future__ import annotations

import itertools

import pytest
import torch
from gpu_bodies import DTYPES, GROUP_MAX, HEAD_DIMS, PAGE_SIZES, REHEARSED
from kernel_cases import check_attend, empty_store, generator, make_query, make_store, random_lists
from kernel_checks import (
    HELD,
    check_append,
    check_evict,
    check_lse,
    check_score,
    entries,
    quarters,
    shuffled_positions,
    some_tokens,
)

from questbench.kernels._bounds import empty_bounds, read_bounds
from questbench.kernels._ops import Ops

pytestmark = pytest.mark.gpu

GROUPS = (1, 2, 4, 7, 8, GROUP_MAX)
SHAPES = list(itertools.product(DTYPES, HEAD_DIMS, PAGE_SIZES))
IDS = [f"{str(dtype)[6:]}-{dim}-{size}" for dtype, dim, size in SHAPES]
LONG = 300 if REHEARSED else 3000


def ragged(page_size: int) -> list[int]:
    """Several splits, empty, one entry, a full page, one more, one less than three."""
    return [LONG, 0, 1, page_size, page_size + 1, 3 * page_size - 1]


@pytest.mark.parametrize(("dtype", "dim", "size"), SHAPES, ids=IDS)
def test_append_keeps_bounds(ops: Ops, dtype: torch.dtype, dim: int, size: int) -> None:
    store = empty_store(3, 6, heads=2, dim=dim, page_size=size, dtype=dtype)
    for seed, count in enumerate((1, size - 1, 1, 2 * size + 1, 1)):
        check_append(ops, store, *entries(store, count, seed))
    check_append(ops, store, *entries(store, 5), new=torch.tensor([0, 5, 1], dtype=torch.int32))


@pytest.mark.parametrize(("dtype", "dim", "size"), SHAPES, ids=IDS)
def test_score(ops: Ops, dtype: torch.dtype, dim: int, size: int) -> None:
    store = make_store(ragged(size), heads=2, dim=dim, page_size=size, dtype=dtype, seed=dim)
    group = GROUPS[SHAPES.index((dtype, dim, size)) % len(GROUPS)]
    for skip_newest in (False, True):
        check_score(ops, store, make_query(store, group), skip_newest)


@pytest.mark.parametrize(("dtype", "dim", "size"), SHAPES, ids=IDS)
def test_attend_dense_and_over_lists(ops: Ops, dtype: torch.dtype, dim: int, size: int) -> None:
    store = make_store(ragged(size), heads=2, dim=dim, page_size=size, dtype=dtype, seed=size)
    group = GROUPS[(SHAPES.index((dtype, dim, size)) + 1) % len(GROUPS)]
    q = make_query(store, group)
    check_attend(ops, store, q, dim**-0.5)
    for heads in (2, 2 * group):
        pages, counts = random_lists(store, heads, LONG // size // 2 + 2)
        check_attend(ops, store, q, dim**-0.5, pages=pages, counts=counts)
        tokens, counts = some_tokens(store, heads, LONG // 2)
        check_attend(ops, store, q, dim**-0.5, tokens=tokens, counts=counts)
        check_lse(ops, store, q, dim**-0.5, tokens=tokens, counts=counts)
    sinks = torch.randn(2 * group, generator=generator(1))
    check_attend(ops, store, q, dim**-0.5, softcap=4.0, sinks=sinks)
    check_attend(ops, store, q, dim**-0.5, prefix_q=make_query(store, group, seed=5), prefix=4)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("merge", ["none", "max", "sum_softmax"])
def test_the_whole_step_equals_its_ops(ops: Ops, group: int, merge: str) -> None:
    size = PAGE_SIZES[GROUPS.index(group) % 4]
    store = make_store(ragged(size), heads=2, dim=HEAD_DIMS[group % 3], page_size=size, dtype=DTYPES[group % 2])
    q = make_query(store, group)
    for force_newest, count in itertools.product((False, True), (1, 5, 10_000)):
        width = min(count, store.page_table.shape[1])
        choice = {"count": count, "width": width, "force_newest": force_newest, "merge": merge}
        got = ops.attend_top(q, store.paged, 0.125, **choice)
        want = Ops.attend_top(ops, q, store.paged, 0.125, **choice)
        assert torch.equal(got, want)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("sinks", "recent"), [(0, 0), (4, 0), (0, 9), (4, 9)])
@pytest.mark.parametrize("size", PAGE_SIZES)
def test_evict(ops: Ops, shared: bool, sinks: int, recent: int, size: int) -> None:
    dim, dtype = HEAD_DIMS[(sinks + size) % 3], DTYPES[recent % 2]
    store = make_store(HELD, heads=2, dim=dim, page_size=size, dtype=dtype)
    for seed in range(3):
        mass = quarters(seed)
        positions = shuffled_positions(shared, seed)
        for weights in (mass, None):
            check_evict(ops, store, positions, weights, sinks=sinks, recent=recent, shared=shared)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("size", PAGE_SIZES)
def test_bounds_by_channel(ops: Ops, dtype: torch.dtype, dim: int, size: int) -> None:
    """Appended, they are those of the pages that are full; scored, each page's score is within its error budget."""
    lengths = [70 * size + 3, 0, 1, size, size + 1] if not REHEARSED else [20 * size + 3, 0, 1, size, size + 1]
    store = empty_store(len(lengths), max(lengths) // size + 3, heads=2, dim=dim, page_size=size, dtype=dtype)
    by_page = store.clone()
    pages = store.k_pages.shape[0]
    store.bounds = empty_bounds(pages, 2, dim, dtype, torch.device("cpu"), by_channel=True)
    k, v = entries(store, max(lengths))
    new = torch.tensor(lengths, dtype=torch.int32)
    for target in (store, by_page):
        ops.append(k, v, target.paged, new)
        ops.append(k[:, :, :1], v[:, :, :1], target.paged)
    full = torch.cat([store.page_table[row, : (n + 1) // size] for row, n in enumerate(lengths)]).long()
    assert torch.equal(read_bounds(store.bounds, full), by_page.bounds[full])
    q = make_query(store, 1)
    got = ops.score(q, store.paged, skip_newest=True)
    want = check_score(ops, by_page, q, True)
    scored = want > -torch.inf
    assert torch.equal(got > -torch.inf, scored)
    magnitude = float(q.abs().double().max() * by_page.k_pages[full].abs().double().max())
    assert (got[scored].double() - want[scored].double()).abs().max() <= 4 * dim * 2.0**-24 * dim * magnitude
