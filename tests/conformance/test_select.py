"""Selection is exact on the scores it is given: ties, NaN, infinities, signed zeros, forced pages, merged heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import REFERENCE, generator, valid_lists
from kernel_checks import SIZE, check_select, check_summed

from questbench import kernels
from questbench.kernels._ops import Merge

CPU = kernels.load("cpu")
"""Where thousands of drawn cases take no time."""
FEW = st.sampled_from([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0, 1.0 + 2**-23, 1e-45, -1e-45, 3e38])

MODEST = st.sampled_from([torch.nan, torch.inf, -torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0, 2.5, 40.0])


@given(
    scores=st.integers(1, 40).flatmap(
        lambda n: st.lists(st.lists(FEW, min_size=n, max_size=n), min_size=4, max_size=4)
    ),
    count=st.integers(1, 45),
    force_newest=st.booleans(),
    merge=st.sampled_from(["none", "max"]),
    missing=st.integers(0, 40 * SIZE),
)
@settings(deadline=None, derandomize=True, max_examples=150, database=None)
def test_any_few_scores(scores: list[list[float]], count: int, force_newest: bool, merge: Merge, missing: int) -> None:
    given_scores = torch.tensor([scores], dtype=torch.float32)
    lengths = torch.tensor([max(0, given_scores.shape[2] * SIZE - missing)], dtype=torch.int32)
    check_select(CPU, given_scores, lengths, count, width=count, force_newest=force_newest, merge=merge, group=2)


@given(
    scores=st.integers(1, 40).flatmap(
        lambda n: st.lists(st.lists(MODEST, min_size=n, max_size=n), min_size=4, max_size=4)
    ),
    count=st.integers(1, 45),
    force_newest=st.booleans(),
    group=st.sampled_from([1, 2, 4]),
    missing=st.integers(0, 40 * SIZE),
)
@settings(deadline=None, derandomize=True, max_examples=200, database=None)
def test_any_few_scores_summed(
    scores: list[list[float]], count: int, force_newest: bool, group: int, missing: int
) -> None:
    """``sum_softmax`` with infinities and NaN: ranks that rounding cannot change are the same in every backend."""
    given_scores = torch.tensor([scores], dtype=torch.float32)
    lengths = torch.tensor([max(0, given_scores.shape[2] * SIZE - missing)], dtype=torch.int32)
    rule = {"width": count, "force_newest": force_newest, "merge": "sum_softmax", "group": group, "scale": 0.5}
    if group == 1:
        check_select(CPU, given_scores, lengths, count, **rule)
        return
    got = CPU.select(given_scores, lengths, SIZE, count, **rule)  # type: ignore[arg-type]
    want = REFERENCE.select(given_scores, lengths, SIZE, count, **rule)  # type: ignore[arg-type]
    assert torch.equal(got[1], want[1])
    assert valid_lists(given_scores, lengths, SIZE, got, **rule)  # type: ignore[arg-type]


@pytest.mark.parametrize("pages", [17, 300, 2049])
def test_scores_however_they_are_spread(pages: int) -> None:
    """Where a search for the threshold supposes that they are spread evenly, it must not rely on it."""
    scores = torch.randn((3, 4, pages), generator=generator(pages))
    scores[0] = torch.randint(-(2**31), 2**31, (4, pages), generator=generator(pages)).int().view(torch.float32)
    scores[1] = (20 * scores[1]).exp()
    scores[2, :, ::3] = torch.inf
    lengths = torch.full((3,), pages * SIZE, dtype=torch.int32)
    for count in (1, 2, pages // 7, pages // 2, pages - 1):
        check_select(CPU, scores, lengths, count, width=count, force_newest=False, merge="none", group=1)


@pytest.mark.parametrize("pages", [1, 2, 15, 16, 17, 31, 33, 300, 2049])
@pytest.mark.parametrize("merge", ["none", "max"])
def test_random_scores_with_ties(ops: Any, pages: int, merge: Merge) -> None:
    scores = torch.randn((3, 4, pages), generator=generator(pages))
    scores[1] = (scores[1] * 2).round()
    scores[2] = 1.0
    lengths = torch.tensor([pages * SIZE, pages * SIZE - SIZE + 1, pages * SIZE // 2], dtype=torch.int32)
    for at, count in enumerate(sorted({1, 2, 7, pages // 2 + 1, pages, pages + 5})):
        options = {"width": count + 3, "force_newest": (at + len(merge)) % 2 == 0, "merge": merge, "group": 2}
        check_select(ops, scores, lengths, count, **options)


@pytest.mark.parametrize("force_newest", [False, True])
@pytest.mark.parametrize("merge", ["none", "max"])
def test_special_values(ops: Any, force_newest: bool, merge: Merge) -> None:
    special = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0, 1.0 + 2**-23, 1e-45, -1e-45, 3e38]
    scores = torch.tensor(special)[torch.randint(0, len(special), (3, 4, 70), generator=generator(1))]
    lengths = torch.tensor([70 * 16, 33 * 16 - 3, 5], dtype=torch.int32)
    for count in (1, 2, 9, 32, 69, 70):
        options = {"width": count, "force_newest": force_newest, "merge": merge, "group": 4}
        check_select(ops, scores, lengths, count, **options)


@pytest.mark.parametrize("force_newest", [False, True])
@pytest.mark.parametrize("merge", ["none", "max", "sum_softmax"])
def test_a_count_per_row(ops: Any, force_newest: bool, merge: Merge) -> None:
    scores = torch.randn((6, 4, 50), generator=generator(1))
    lengths = torch.tensor([800, 800, 799, 0, 16, 17], dtype=torch.int32)
    count = torch.tensor([1, 50, 7, 3, 3, 1], dtype=torch.int32)
    pages, counts = check_select(
        ops, scores, lengths, count, width=50, force_newest=force_newest, merge=merge, group=2, scale=0.5
    )
    assert counts[:, 0].tolist() == [1, 50, 7, 0, 1, 1]
    assert (pages[3] == -1).all()
    if force_newest:
        assert (pages[0, :, 0] == 49).all() and (pages[5, :, 0] == 1).all()


def test_equal_scores_go_to_the_lower_page_and_nan_first(ops: Any) -> None:
    row = [0.0, -0.0, 5.0, torch.nan, 0.0, -torch.inf, torch.nan]
    scores, lengths = torch.tensor([[row]]), torch.tensor([7 * SIZE], dtype=torch.int32)
    want = {1: [3], 2: [3, 6], 3: [2, 3, 6], 4: [0, 2, 3, 6], 5: [0, 1, 2, 3, 6], 6: [0, 1, 2, 3, 4, 6]}
    for count, pages in want.items():
        got, counts = ops.select(scores, lengths, SIZE, count, width=count, force_newest=False)
        assert got[0, 0].tolist() == pages and counts.tolist() == [[count]]


def test_a_tie_of_many_more_pages_than_wanted(ops: Any) -> None:
    scores = torch.full((1, 2, 4000), -torch.inf)
    scores[0, 1, 3000:] = 2.0
    lengths = torch.tensor([4000 * SIZE], dtype=torch.int32)
    got, _ = ops.select(scores, lengths, SIZE, 100, width=100, force_newest=False)
    assert got[0, 0].tolist() == list(range(100)) and got[0, 1].tolist() == list(range(3000, 3100))


@pytest.mark.parametrize(
    ("group", "pages"), [(1, 16), (1, 513), (2, 5), (2, 100), (7, 100), (8, 16), (8, 513), (16, 1500)]
)
def test_summed_softmax_takes_the_best_up_to_rounding(ops: Any, group: int, pages: int) -> None:
    check_summed(ops, group, pages)


@pytest.mark.parametrize("unknown", [torch.nan, torch.inf])
def test_summed_softmax_takes_pages_without_a_finite_score_first_and_still_ranks_the_others(
    ops: Any, unknown: float
) -> None:
    scores = torch.randn((1, 4, 40), generator=generator(3))
    scores[0, 1, 30] = unknown
    lengths = torch.tensor([40 * SIZE], dtype=torch.int32)
    options = {"width": 6, "force_newest": True, "merge": "sum_softmax", "group": 4}
    pages, _ = check_select(ops, scores, lengths, 6, **options)
    assert {30, 39} <= set(pages[0, 0].tolist())


def test_summed_softmax_ranks_pages_far_below_the_best(ops: Any) -> None:
    scores = torch.arange(0, -4000, -100, dtype=torch.float32).flip(0).expand(1, 4, -1).contiguous()
    lengths = torch.tensor([40 * SIZE], dtype=torch.int32)
    options = {"width": 6, "force_newest": False, "merge": "sum_softmax", "group": 4}
    pages, _ = check_select(ops, scores, lengths, 6, **options)
    assert pages[0, 0].tolist() == [34, 35, 36, 37, 38, 39]


def test_a_page_at_minus_infinity_in_every_head_ranks_last(ops: Any) -> None:
    scores = torch.tensor([[[0.0, 1.0, -torch.inf, 2.0, 3.0]] * 2])
    lengths = torch.tensor([5 * SIZE], dtype=torch.int32)
    options = {"width": 4, "force_newest": False, "merge": "sum_softmax", "group": 2}
    assert check_select(ops, scores, lengths, 3, **options)[0].tolist() == [[[1, 3, 4, -1]]]
    assert check_select(ops, scores, lengths, 4, **options)[0].tolist() == [[[0, 1, 3, 4]]]


def test_a_head_that_knows_only_minus_infinity_adds_nothing(ops: Any) -> None:
    scores = torch.full((1, 2, 20), -torch.inf)
    scores[0, 1] = torch.arange(20.0)
    lengths = torch.tensor([20 * SIZE], dtype=torch.int32)
    options = {"width": 3, "force_newest": False, "merge": "sum_softmax", "group": 2}
    assert check_select(ops, scores, lengths, 3, **options)[0].tolist() == [[[17, 18, 19]]]
    scores[0, 0, 4] = torch.nan
    assert check_select(ops, scores, lengths, 3, **options)[0].tolist() == [[[4, 18, 19]]]


@pytest.mark.parametrize("group", [1, 2])
def test_summed_softmax_ranks_nan_and_infinity_alike(ops: Any, group: int) -> None:
    row = [0.0, torch.inf, 5.0, torch.nan, torch.inf]
    scores, lengths = torch.tensor([[row] * group]), torch.tensor([5 * SIZE], dtype=torch.int32)
    options = {"width": 2, "force_newest": False, "merge": "sum_softmax", "group": group}
    assert check_select(ops, scores, lengths, 1, **options)[0].tolist() == [[[1, -1]]]
    assert check_select(ops, scores, lengths, 2, **options)[0].tolist() == [[[1, 3]]]


def test_one_head_alone_ranks_by_its_scores(ops: Any) -> None:
    """Scores that the subtraction of a logarithm would make equal."""
    scores = torch.tensor([[[1e-4, 0.0, 2e-4, 1e4, 3e-4]]])
    lengths = torch.tensor([5 * SIZE], dtype=torch.int32)
    options = {"width": 2, "force_newest": False, "merge": "sum_softmax", "group": 1}
    assert check_select(ops, scores, lengths, 2, **options)[0].tolist() == [[[3, 4]]]
