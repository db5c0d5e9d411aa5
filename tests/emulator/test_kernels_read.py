"""The shipped CUDA kernels that read, score, select and attend, in the block emulator: within their error budgets."""

from __future__ import annotations

from typing import Any

import pytest
import test_attend_records as records
import test_select as selecting
import torch
from kernel_cases import REFERENCE, check_attend, generator, make_query, make_store, random_lists
from test_score import check as check_score

from questbench.kernels._bounds import empty_bounds, write_bounds
from questbench.kernels._ops import Merge, Ops
from questbench.kernels.cuda import best_splits

HALVES = (torch.float16, torch.bfloat16)
GROUPS = (1, 2, 3, 4, 7, 8, 12, 16)
SHAPES = [(64, 8), (128, 16), (256, 32), (64, 64), (128, 8), (256, 16), (64, 32), (128, 64)]
"""Head size and page size, one pair for each group."""
CASES = [(group, *shape) for group, shape in zip(GROUPS, SHAPES, strict=True)]


def ragged(page_size: int, long: int = 5) -> list[int]:
    """Several pages, none, one entry, a full page, one more, one less than two."""
    return [long * page_size + 3, 0, 1, page_size, page_size + 1, 2 * page_size - 1]


# ---- Score -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "dim", "size"), CASES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_scores(ops: Any, dtype: torch.dtype, group: int, dim: int, size: int) -> None:
    store = make_store(ragged(size, 40), heads=2, dim=dim, page_size=size, dtype=dtype, seed=group)
    q = make_query(store, group)
    for skip_newest in (False, True):
        scores = check_score(ops, store, q, skip_newest)
    for row, length in enumerate(store.lengths.tolist()):
        keys = store.entries(store.k_pages, row).double().repeat_interleave(group, dim=0)
        products = torch.einsum("hd,htd->ht", q[row].double(), keys)
        slack = 1e-4 * float(products.abs().max()) if length else 0.0
        for page in range(-(-length // size) - 1):
            assert (scores[row, :, page] + slack >= products[:, page * size : (page + 1) * size].amax(1)).all()


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_scores_from_bounds_by_channel(ops: Any, dtype: torch.dtype, dim: int) -> None:
    lengths = [70 * 8 + 3, 0, 1, 8, 9, 64 * 8 + 1]
    shape = {"heads": 2, "dim": dim, "page_size": 8, "dtype": dtype, "seed": dim}
    store, plain = make_store(lengths, **shape, by_channel=True), make_store(lengths, **shape)
    q = make_query(store, 1)
    got = ops.score(q, store.paged, skip_newest=True)
    want = REFERENCE.score(q.double(), plain.wide().paged, skip_newest=True)
    scored = want > -torch.inf
    assert torch.equal(got > -torch.inf, scored)
    assert ((got[scored].double() - want[scored]).abs() <= 2e-5 * want[scored].abs().max()).all()


@pytest.mark.parametrize("start", [0, 64, 5, 40])
@pytest.mark.parametrize("dim", [64, 128])
def test_scores_from_bounds_by_channel_of_neighbours(ops: Any, start: int, dim: int) -> None:
    """Runs of physical pages that begin at a block's start, inside of one, and a run with a gap."""
    shape = {"heads": 2, "dim": dim, "page_size": 8, "dtype": HALVES[start % 2]}
    plain = make_store([150 * 8], **shape)
    q, used = make_query(plain, 1), plain.page_table[0, :150].long()
    want = REFERENCE.score(q.double(), plain.wide().paged, skip_newest=True)
    for gap in (0, 1):
        where = torch.arange(start, start + 150, dtype=torch.int32)
        where[100:] += gap
        bounds = empty_bounds(320, 2, dim, q.dtype, q.device, by_channel=True).fill_(torch.nan)
        for page, target in zip(used.tolist(), where.tolist(), strict=True):
            write_bounds(bounds, target, plain.bounds[page])
        got = ops.score(q, plain.paged._replace(bounds=bounds, table=where[None]), skip_newest=True)
        scored = want[:, :, :150] > -torch.inf
        error = (got.double() - want[:, :, :150])[scored].abs()
        assert torch.equal(got > -torch.inf, scored) and (error <= 2e-5 * want[:, :, :149].abs().max()).all()


@pytest.mark.parametrize("pages", [1, 15, 16, 17, 63, 64, 65, 128, 129])
@pytest.mark.parametrize("by_channel", [False, True])
def test_every_width_of_the_page_table(ops: Any, pages: int, by_channel: bool) -> None:
    """All columns are written, whether the row has that page or not."""
    shape = {"heads": 1, "dim": 64, "page_size": 8, "dtype": torch.float16}
    long = max(pages - 2, 1)
    store = make_store([long * 8, 3], **shape, by_channel=by_channel)
    plain = make_store([long * 8, 3], **shape)
    q, table = make_query(store, 1), store.page_table[:, :pages]
    got = ops.score(q, store.paged._replace(table=table), skip_newest=True)
    want = REFERENCE.score(q, plain.paged._replace(table=table), skip_newest=True)
    assert got.shape == (2, 1, pages)
    assert torch.equal(got > -torch.inf, want > -torch.inf) and torch.allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group", [1, 2, 8])
def test_infinity_and_nan_in_bounds_and_queries(ops: Any, group: int) -> None:
    store = make_store([40, 40, 24], heads=2, dim=64, page_size=8, dtype=torch.bfloat16)
    q = make_query(store, group)
    store.bounds[int(store.page_table[0, 3]), 1, :, 5] = torch.nan
    store.bounds[int(store.page_table[2, 1]), 0, 0, 9] = torch.inf
    q[1, 0, 7] = torch.nan
    q[2, :, 9] = 1.0
    got = ops.score(q, store.paged, skip_newest=False)
    want = REFERENCE.score(q, store.paged, skip_newest=False)
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isposinf(), want.isposinf())


# ---- Select ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pages", [1, 2, 17, 33, 300, 2049])
@pytest.mark.parametrize("merge", ["none", "max"])
def test_selection_with_ties(ops: Any, pages: int, merge: Merge) -> None:
    scores = torch.randn((3, 4, pages), generator=generator(pages))
    scores[1] = (scores[1] * 2).round()
    scores[2] = 1.0
    size = selecting.SIZE
    lengths = torch.tensor([pages * size, pages * size - size + 1, pages * size // 2], dtype=torch.int32)
    for at, count in enumerate(sorted({1, 2, 7, pages // 2 + 1, pages, pages + 5})):
        options = {"width": count + 3, "force_newest": at % 2 == 0, "merge": merge, "group": 2}
        selecting.agree(ops, scores, lengths, count, **options)


@pytest.mark.parametrize("force_newest", [False, True])
@pytest.mark.parametrize("merge", ["none", "max"])
def test_selection_among_special_values(ops: Any, force_newest: bool, merge: Merge) -> None:
    special = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0, 1.0 + 2**-23, 1e-45, -1e-45, 3e38]
    picks = torch.randint(0, len(special), (3, 4, 70), generator=generator(1))
    scores = torch.tensor(special)[picks]
    lengths = torch.tensor([70 * 16, 33 * 16 - 3, 5], dtype=torch.int32)
    for count in (1, 2, 9, 32, 69, 70):
        options = {"width": count, "force_newest": force_newest, "merge": merge, "group": 4}
        selecting.agree(ops, scores, lengths, count, **options)


@pytest.mark.parametrize("merge", ["none", "max", "sum_softmax"])
@pytest.mark.parametrize("force_newest", [False, True])
def test_a_count_per_row(ops: Any, force_newest: bool, merge: Merge) -> None:
    selecting.test_a_count_per_row(ops, force_newest, merge)


def test_ties(ops: Any) -> None:
    selecting.test_equal_scores_go_to_the_lower_page_and_nan_first(ops)
    selecting.test_a_tie_of_many_more_pages_than_wanted(ops)


@pytest.mark.parametrize(("group", "pages"), [(1, 16), (2, 5), (7, 100), (8, 513), (16, 1500)])
def test_summed_softmax(ops: Any, group: int, pages: int) -> None:
    selecting.test_summed_softmax_takes_the_best_up_to_rounding(ops, group, pages)


def test_summed_softmax_far_below_the_best_and_without_finite_scores(ops: Any) -> None:
    selecting.test_summed_softmax_ranks_pages_far_below_the_best(ops)
    for unknown in (torch.nan, torch.inf):
        selecting.test_summed_softmax_takes_pages_without_a_finite_score_first_and_still_ranks_the_others(ops, unknown)


@pytest.mark.parametrize("group", [1, 2])
def test_summed_softmax_of_infinities(ops: Any, group: int) -> None:
    selecting.test_summed_softmax_ranks_nan_and_infinity_alike(ops, group)
    if group == 1:
        selecting.test_one_head_alone_ranks_by_its_scores(ops)
    else:
        selecting.test_a_page_at_minus_infinity_in_every_head_ranks_last(ops)
        selecting.test_a_head_that_knows_only_minus_infinity_adds_nothing(ops)


# ---- Attend ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "dim", "size"), CASES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_attention_dense_and_over_lists(ops: Any, dtype: torch.dtype, group: int, dim: int, size: int) -> None:
    heads = 1 if group * size > 500 else 2
    store = make_store(ragged(size, 4), heads=heads, dim=dim, page_size=size, dtype=dtype, seed=group)
    q = make_query(store, group)
    check_attend(ops, store, q, dim**-0.5)
    for lists, count in ((heads, 1), (heads, 6), (heads * group, 3)):  # one page, all, some
        pages, counts = random_lists(store, lists, count)
        check_attend(ops, store, q, dim**-0.5, pages=pages, counts=counts)


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_attention_over_many_splits(ops: Any, dtype: torch.dtype, group: int) -> None:
    store = make_store([2300, 5, 1024], heads=2, dim=64, page_size=16, dtype=dtype)
    q = make_query(store, group)
    check_attend(ops, store, q, 0.125)
    pages, counts = random_lists(store, 2, 90)
    check_attend(ops, store, q, 0.125, pages=pages, counts=counts)


def test_attention_over_more_splits_than_a_warp_has_lanes(ops: Any) -> None:
    assert best_splits(2, 5200, 3 * 132) > 32
    store = make_store([5200, 40], heads=1, dim=64, page_size=16, dtype=torch.bfloat16)
    for page in (0, 180, 324):  # the greatest logits stand in the first split, in one beyond the 32nd, in the last
        store.k_pages[int(store.page_table[0, page])] *= 3
    check_attend(ops, store, make_query(store, 3), 0.125, sinks=torch.tensor([2.0, -1.0, 9.0]))


@pytest.mark.parametrize("listed", ["dense", "kv heads", "query heads"])
@pytest.mark.parametrize(
    ("softcap", "sinks", "prefix"), [(3.0, False, 1), (0.0, True, 0), (50.0, True, 37), (0.0, False, 5000)]
)
def test_softcap_sinks_and_prefix(ops: Any, listed: str, softcap: float, sinks: bool, prefix: int) -> None:
    store = make_store([300, 0, 1, 16, 17, 100], heads=2, dim=64, page_size=16, dtype=HALVES[len(listed) % 2])
    heads = {"dense": 0, "kv heads": 2, "query heads": 8}[listed]
    pages, counts = random_lists(store, heads, 4) if heads else (None, None)
    check_attend(
        ops,
        store,
        make_query(store, 4),
        0.25,
        pages=pages,
        counts=counts,
        softcap=softcap,
        sinks=torch.randn(8, generator=generator(5)) * 3 if sinks else None,
        prefix_q=make_query(store, 4, seed=9) if prefix else None,
        prefix=prefix,
    )


@pytest.mark.parametrize("where", [0, 127, 128, 1023, 1024, 1300])
def test_one_entry_that_takes_all_is_found_in_every_split(ops: Any, where: int) -> None:
    store = make_store([1301], heads=1, dim=64, page_size=16, dtype=HALVES[where % 2])
    q = make_query(store, 2)
    page, slot = int(store.page_table[0, where // 16]), where % 16
    store.k_pages[page, 0, slot] = 4 * (q[0, 0] + q[0, 1])
    got = check_attend(ops, store, q, 1.0)
    assert torch.equal(got[0], store.v_pages[page, 0, slot].expand(2, -1))


@pytest.mark.parametrize("listed", ["dense", "kv heads", "query heads"])
def test_what_attention_leaves_behind(ops: Any, listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LENGTHS", [300, 0, 1, 16, 17])
    store = make_store(records.LENGTHS, heads=2, dim=64, page_size=16, dtype=HALVES[len(listed) % 2])
    for mode, with_sinks in (("last", False), ("sum", True)):
        records.test_mass_is_the_probability_of_each_slot(ops, store, listed, mode, with_sinks)  # type: ignore[arg-type]
    records.test_visits_count_every_read_of_every_query_head(ops, store, listed)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("listed", ["kv heads", "query heads"])
def test_nan_and_infinity_leak_only_from_entries_that_are_read(
    ops: Any, value: float, listed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "LENGTHS", [300, 0, 1, 16, 17])
    store = make_store(records.LENGTHS, heads=2, dim=64, page_size=16, dtype=HALVES[len(listed) % 2])
    records.test_nan_and_infinity_leak_only_from_entries_that_are_read(ops, store, "k", value, listed)
    if value != value:
        records.test_nan_and_infinity_leak_only_from_entries_that_are_read(ops, store, "v", value, listed)
        return
    # An infinite value may become NaN (weights are multiplied in two parts, of which one may be zero); nothing else.
    q, options = make_query(store, 4), records.lists(store, listed)
    page = int(options["pages"][0, 0, 2])
    store.v_pages[int(store.page_table[0, page]), :, 3, 5] = value
    got = ops.attend(q, store.paged, 0.125, **options)
    want = REFERENCE.attend(q, store.paged, 0.125, **options)
    assert torch.equal(got.isfinite(), want.isfinite())


@pytest.mark.parametrize("listed", ["kv heads", "query heads"])
def test_lists_that_are_empty_or_of_nan(ops: Any, listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LENGTHS", [300, 0, 1, 16, 17])
    shape = {"heads": 2, "dim": 64, "page_size": 16, "dtype": HALVES[len(listed) % 2]}
    for with_sinks in (False, True):
        store = make_store(records.LENGTHS, **shape)
        records.test_an_empty_list_of_a_row_that_is_not_gives_zeros(ops, store, listed, with_sinks)
    for value in (torch.nan, -torch.inf):
        store = make_store(records.LENGTHS, **shape)
        records.test_slots_that_were_not_read_have_no_mass_whatever_the_others_weigh(ops, store, value)


def test_logits_that_are_all_minus_infinity(ops: Any) -> None:
    store = make_store([3], heads=1, dim=64, page_size=16, dtype=torch.float16)
    q = make_query(store, 1)
    q[0, :, 0] = 1.0
    store.k_pages[int(store.page_table[0, 0]), 0, :3, 0] = -torch.inf
    assert ops.attend(q, store.paged, 0.125).isnan().all()
    assert (ops.attend(q, store.paged, 0.125, sinks=torch.zeros(1)) == 0).all()


def test_empty_rows_give_zeros_whatever_else_is_asked(ops: Any) -> None:
    store = make_store([0, 0], heads=2, dim=64, page_size=16, dtype=torch.bfloat16)
    q = make_query(store, 2)
    pages, counts = random_lists(store, 2, 3)
    for options in ({}, {"pages": pages, "counts": counts}, {"sinks": torch.ones(4)}):
        assert torch.equal(ops.attend(q, store.paged, 0.125, **options), torch.zeros_like(q))


@pytest.mark.parametrize("merge", ["none", "max", "sum_softmax"])
@pytest.mark.parametrize(("group", "dim", "size"), [(1, 128, 16), (8, 64, 8)])
def test_the_fused_step_equals_the_three_ops(ops: Any, merge: Merge, group: int, dim: int, size: int) -> None:
    store = make_store(ragged(size, 14), heads=2, dim=dim, page_size=size, dtype=HALVES[group // 8])
    q = make_query(store, group)
    per_row = torch.tensor([9, 1, 2, 1, 1, 2], dtype=torch.int32)
    for force_newest, count in ((True, 5), (False, 100), (True, per_row)):
        visits = torch.zeros((6, 2, 33 * size), dtype=torch.int32)
        want_visits = visits.clone()
        choice = {"count": count, "width": 100, "force_newest": force_newest, "merge": merge}
        got = ops.attend_top(q, store.paged, 0.125, **choice, visits=visits)
        want = Ops.attend_top(ops, q, store.paged, 0.125, **choice, visits=want_visits)
        assert torch.equal(got, want) and torch.equal(visits, want_visits)
