"""Paired tests against typed-in values, brute force and simulation."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from questbench.errors import UsageError
from questbench.measure import paired


# Two-sided exact binomial p values of (losses, gains); 30/5 is 2 (1 + 35 + 595 + 6545 + 52360 + 324632) / 2^35.
@pytest.mark.parametrize(
    ("losses", "gains", "p"),
    [
        (30, 5, 2.236153e-05),
        (5, 30, 2.236153e-05),
        (6, 0, 0.03125),
        (5, 0, 0.0625),
        (10, 2, 0.03857422),
        (9, 3, 0.14599609),
        (0, 0, 1.0),
        (4, 4, 1.0),
        (1, 0, 1.0),
    ],
)
def test_mcnemar(losses: int, gains: int, p: float) -> None:
    assert paired.mcnemar(losses, gains) == pytest.approx(p, rel=1e-5)


def test_mcnemar_agrees_with_scipy() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    for losses, gains in itertools.product(range(0, 40, 3), repeat=2):
        if losses + gains:
            expected = scipy_stats.binomtest(losses, losses + gains).pvalue
            assert paired.mcnemar(losses, gains) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_pairs_does_not_overflow() -> None:
    assert paired.mcnemar(3000, 2000) < 1e-40
    assert paired.mcnemar(2500, 2500) == 1.0


@pytest.mark.parametrize(
    ("n", "smallest"), [(5, None), (6, 1.0), (20, 0.3), (50, 0.12), (100, 0.06), (200, 0.03), (600, 0.01)]
)
def test_smallest_resolvable(n: int, smallest: float | None) -> None:
    assert paired.smallest_resolvable(n) == (None if smallest is None else pytest.approx(smallest))


def test_smallest_resolvable_is_where_significance_begins() -> None:
    for n in (6, 37, 100):
        changed = round(n * (paired.smallest_resolvable(n) or 0))
        for losses, expected in ((changed, True), (changed - 1, False)):
            scores = [0.0] * losses + [1.0] * (n - losses)
            assert (paired.compare(scores, [1.0] * n, binary=True).p_value < paired.ALPHA) is expected


def test_binary_comparison() -> None:
    dense = [1.0] * 30 + [0.0] * 5 + [1.0] * 50 + [0.0] * 15
    scores = [0.0] * 30 + [1.0] * 5 + [1.0] * 50 + [0.0] * 15
    found = paired.compare(scores, dense, binary=True)
    assert (found.n, found.losses, found.gains) == (100, 30, 5)
    assert found.delta == pytest.approx(-0.25)
    assert found.p_value < paired.ALPHA
    # By hand: (5.5 - 30.5) / 102 -+ 1.96 sqrt(36 - 625 / 102) / 102.
    assert (found.ci_low, found.ci_high) == pytest.approx((-0.350130, -0.140067), abs=1e-5)
    assert found.min_detectable == pytest.approx(0.06)


def test_no_difference_is_not_shown_as_certainty() -> None:
    found = paired.compare([1.0] * 20, [1.0] * 20, binary=True)
    assert found.p_value == 1.0
    assert found.ci_low == -found.ci_high == pytest.approx(-0.0890891, abs=1e-6)
    assert paired.matched_interval(6, 0, 6)[0] == -1.0


def test_equal_methods_are_rarely_significant() -> None:
    rng = np.random.default_rng(0)
    false_alarms = 0
    for _ in range(2000):
        hard = rng.random(100) < 0.3
        a, b = np.where(hard, rng.random(100) < 0.5, 1), np.where(hard, rng.random(100) < 0.5, 1)
        false_alarms += (
            paired.compare(a.astype(float).tolist(), b.astype(float).tolist(), binary=True).p_value < paired.ALPHA
        )
    assert false_alarms <= 0.06 * 2000


def test_equal_graded_methods_are_rarely_significant() -> None:
    rng = np.random.default_rng(1)
    false_alarms = 0
    for run in range(2000):
        base = rng.random(40)
        a, b = (np.clip(base + rng.normal(0, 0.1, 40), 0, 1) for _ in "ab")
        found = paired.sign_flip((a - b).tolist(), seed=run, flips=400)
        false_alarms += found < 0.05
    assert false_alarms <= 0.06 * 2000


def test_sign_flip_is_exact_for_few_differences() -> None:
    differences = [0.3, 0.1, -0.05, 0.2, 0.15, 0.0]
    sums = [abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True))) for signs in _signs(6)]
    observed = abs(math.fsum(differences)) - 1e-12
    assert paired.sign_flip(differences) == pytest.approx(sum(s >= observed for s in sums) / len(sums))
    assert paired.sign_flip([0.1] * 6) == 0.03125
    assert paired.sign_flip([0.1] * 5) == 0.0625
    assert paired.sign_flip([0.0] * 9) == 1.0


def _signs(n: int) -> list[tuple[int, ...]]:
    return list(itertools.product((-1, 1), repeat=n))


def test_sign_flip_by_drawing_agrees_with_the_exact_test(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    differences = [rng.gauss(0.05, 0.1) for _ in range(14)]
    exact = paired.sign_flip(differences)
    monkeypatch.setattr(paired, "_EXACT_FLIPS", 0)
    drawn = paired.sign_flip(differences, seed=1, flips=40_000)
    assert drawn == pytest.approx(exact, abs=0.01)
    assert drawn == paired.sign_flip(differences, seed=1, flips=40_000)


def test_sign_flip_is_never_zero() -> None:
    assert paired.sign_flip([1.0] * 100, flips=99) == pytest.approx(0.01)


def test_graded_comparison() -> None:
    rng = random.Random(5)
    dense = [rng.random() for _ in range(60)]
    worse = [max(0.0, score - abs(rng.gauss(0.05, 0.02))) for score in dense]
    found = paired.compare(worse, dense, binary=False, seed=2)
    assert found == paired.compare(worse, dense, binary=False, seed=2)
    assert found.p_value < paired.ALPHA and found.ci_low < found.delta < found.ci_high < 0
    assert found.min_detectable is not None and 0 < found.min_detectable < abs(found.delta)
    same = paired.compare(dense, dense, binary=False)
    assert (same.delta, same.p_value, same.losses, same.gains) == (0.0, 1.0, 0, 0)
    assert same.min_detectable == pytest.approx(0.1)
    # None of 60 differs: as far as z^2 further samples that lose everything.
    assert same.ci_high == -same.ci_low == pytest.approx(3.841459 / 63.841459)
    # One loses a half: the bootstrap's upper end would be 0, its lower one 2.5 points.
    one = paired.compare([score - 0.5 * (at == 7) for at, score in enumerate(dense)], dense, binary=False)
    half = 0.5 * 3.841459
    assert (one.ci_low, one.ci_high) == pytest.approx(((-0.5 - half) / 63.841459, (-0.5 + half) / 63.841459))
    assert paired.compare([0.5], [0.5], binary=False).min_detectable is None


def test_holm() -> None:
    # Holm 1979 by hand: 4 x 0.01, 3 x 0.02, then the running maximum.
    assert paired.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert paired.holm([0.5, 0.9]) == [1.0, 1.0]
    assert paired.holm([]) == []


def test_a_family_of_comparisons() -> None:
    dense = [1.0] * 50
    family = [paired.compare([0.0] * k + [1.0] * (50 - k), dense, binary=True).p_value for k in (7, 20, 0)]
    done = paired.holm(family)
    assert done[0] == pytest.approx(2 * 2 / 2**7) and done[1] < paired.ALPHA <= done[2]
    assert family[0] < paired.ALPHA and done[0] < paired.ALPHA <= paired.holm([family[0]] * 4)[0]


def test_what_cannot_be_paired_is_refused() -> None:
    for scores, dense, binary in (([1.0], [1.0, 0.0], True), ([], [], True), ([0.5], [1.0], True)):
        with pytest.raises(UsageError) as caught:
            paired.compare(scores, dense, binary=binary)
        assert caught.value.hint
