"""Order statistics, intervals and summaries against typed-in values and independent formulas."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from questbench.errors import UsageError
from questbench.measure import stats
from questbench.measure.order import _rank


def test_quantiles_interpolate() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [stats.quantile(values, q) for q in (0.0, 0.2, 0.5, 0.8, 1.0)] == pytest.approx([1.0, 1.8, 3.0, 4.2, 5.0])
    assert stats.median([1.0, 2.0]) == 1.5
    assert stats.quantile([7.0], 0.99) == 7.0


def test_quantiles_agree_with_numpy() -> None:
    rng = random.Random(0)
    for n in (1, 2, 3, 10, 37):
        values = [rng.random() for _ in range(n)]
        for q in (0.0, 0.01, 0.2, 0.5, 0.8, 0.9, 0.99, 1.0):
            assert stats.quantile(values, q) == pytest.approx(float(np.quantile(values, q)), rel=1e-12)


def test_no_samples_are_refused() -> None:
    for call in (stats.median, stats.summary, stats.bootstrap_mean):
        with pytest.raises(UsageError) as caught:
            call([])
        assert caught.value.hint


# The usual table of distribution-free intervals of a median at 95 %: n and the rank of the lower end.
@pytest.mark.parametrize(
    ("n", "rank"), [(1, 0), (5, 0), (6, 1), (8, 1), (9, 2), (12, 3), (20, 6), (25, 8), (50, 18), (100, 40)]
)
def test_rank_of_the_median_interval(n: int, rank: int) -> None:
    assert _rank(n) == rank


def test_median_interval() -> None:
    assert stats.median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)
    assert stats.median_interval([float(i) for i in range(1, 21)]) == (6.0, 15.0)
    assert stats.median_interval([1.0] * 5) == (-math.inf, math.inf)


def test_median_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = random.Random(1)
    covered = 0
    for _ in range(2000):
        low, high = stats.median_interval([rng.expovariate(1.0) for _ in range(20)])
        covered += low <= math.log(2) <= high
    assert 0.94 <= covered / 2000 <= 0.975  # 0.9586 by the binomial distribution


def test_relative_noise() -> None:
    assert stats.relative_noise([float(i) for i in range(1, 21)]) == pytest.approx((15 - 6) / (2 * 10.5))
    assert stats.relative_noise([2.0] * 6) == 0.0
    assert stats.relative_noise([2.0] * 5) == math.inf
    assert stats.relative_noise([0.0] * 6) == 0.0
    assert stats.relative_noise([-1.0] * 3 + [1.0] * 3) == math.inf


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (100, 100, 0.963005, 1.0),
        (20, 20, 0.838875, 1.0),
        (5, 100, 0.021543, 0.111750),
        (0, 10, 0.0, 0.277533),
        (15, 50, 0.191036, 0.437504),
    ],
)
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    assert stats.wilson(successes, n) == pytest.approx((low, high), abs=2e-6)


def test_wilson_solves_its_equation() -> None:
    for successes, n in ((1, 7), (30, 40), (499, 500)):
        for bound in stats.wilson(successes, n):
            assert (successes / n - bound) ** 2 == pytest.approx(stats.Z95**2 * bound * (1 - bound) / n)


def test_wilson_without_samples_and_without_sense() -> None:
    assert stats.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(UsageError):
        stats.wilson(3, 2)


def test_bootstrap_is_deterministic_and_close_to_theory() -> None:
    rng = random.Random(2)
    values = [rng.gauss(0.6, 0.1) for _ in range(400)]
    low, high = stats.bootstrap_mean(values, seed=5)
    assert (low, high) == stats.bootstrap_mean(values, seed=5) != stats.bootstrap_mean(values, seed=6)
    mean = sum(values) / len(values)
    half = 1.96 * float(np.std(values)) / math.sqrt(len(values))
    assert low == pytest.approx(mean - half, abs=0.05 * half)
    assert high == pytest.approx(mean + half, abs=0.05 * half)


def test_bootstrap_in_parts_keeps_to_the_range() -> None:
    values = [0.0, 1.0] * 3000
    low, high = stats.bootstrap_mean(values, resamples=1000)
    assert 0.48 < low < 0.5 < high < 0.52
    assert stats.bootstrap_mean([0.25]) == (0.25, 0.25)


def test_bounded_mean_of_equal_scores_is_wilson_s() -> None:
    for n in (2, 20, 100):
        assert stats.bounded_mean([1.0] * n, 0, 1) == pytest.approx(stats.wilson(n, n))
        assert stats.bounded_mean([0.0] * n, 0, 1) == pytest.approx(stats.wilson(0, n))


def test_bounded_mean_is_the_bootstrap_where_that_knows_enough() -> None:
    rng = np.random.default_rng(3)
    values = rng.random(400).tolist()
    assert stats.bounded_mean(values, 0, 1, seed=5) == stats.bootstrap_mean(values, seed=5)


@pytest.mark.parametrize("n", [5, 20, 100])
@pytest.mark.parametrize(("lowest", "highest", "mean"), [(-1, 1, -0.025), (0, 1, 0.975)])
def test_bounded_mean_covers_what_the_bootstrap_misses(n: int, lowest: int, highest: int, mean: float) -> None:
    """One sample in twenty loses something: the bootstrap of 20 covers the mean in 6 of 10 runs."""
    rng = np.random.default_rng(n)
    covered = alone = 0
    for run in range(300):
        values = np.where(rng.random(n) < 0.05, -rng.random(n), 0.0) + (0 if lowest else 1)
        low, high = stats.bounded_mean(values.tolist(), lowest, highest, seed=run, resamples=400)
        assert lowest <= low <= high <= highest
        covered += low <= mean <= high
        low, high = stats.bootstrap_mean(values.tolist(), seed=run, resamples=400)
        alone += low <= mean <= high
    assert covered / 300 >= 0.93
    assert alone / 300 < 0.91


def test_summary() -> None:
    found = stats.summary([float(i) for i in range(1, 21)])
    assert found["n"] == 20 and found["mean"] == 10.5 and found["min"] == 1 and found["max"] == 20
    assert (found["ci_low"], found["ci_high"]) == (6.0, 15.0)
    assert [found[name] for name in ("p20", "p80", "p90", "p99")] == pytest.approx([4.8, 16.2, 18.1, 19.81])
    assert found["noise"] == pytest.approx(0.428571, abs=1e-6)
