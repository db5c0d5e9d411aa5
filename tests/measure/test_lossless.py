"""Lossless: Tango's limit against typed-in values, and how often a method that loses the margin is called lossless."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from questbench.errors import CellError, UsageError
from questbench.measure import lossless
from questbench.measure.stats import bootstrap_mean


def differences(losses: int, gains: int, n: int) -> list[float]:
    return [-1.0] * losses + [1.0] * gains + [0.0] * (n - losses - gains)


def test_tango_of_a_published_example() -> None:
    # Airway reactivity of 21 children (1, 1, 7, 12) in Fagerland, Lydersen and Laake, Statistics in Medicine 33, 2014:
    # Tango's interval is (-0.517, -0.026).
    low, high = lossless.tango_lower(losses=7, gains=1, n=21), -lossless.tango_lower(losses=1, gains=7, n=21)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)
    assert lossless.tango_statistic(7, 1, 21, low) == pytest.approx(1.959964, abs=1e-6)
    assert lossless.tango_statistic(7, 1, 21, high) == pytest.approx(-1.959964, abs=1e-6)


def test_tango_where_no_pair_differs() -> None:
    for n in (50, 100, 189, 500):
        assert lossless.tango_lower(0, 0, n) == pytest.approx(-3.8414588 / (n + 3.8414588), abs=1e-9)


def test_tango_by_hand() -> None:
    # 100 pairs, 10 lost, 2 gained, assumed difference -0.1: the quadratic of the paper's eq. 9, written out.
    b = (200 - 2 + 10) * -0.1 - 12
    c = -10 * -0.1 * 1.1
    share = (math.sqrt(b * b - 800 * c) - b) / 400
    expected = (2 - 10 + 10) / math.sqrt(100 * (2 * share - 0.1 * 1.1))
    assert lossless.tango_statistic(10, 2, 100, -0.1) == pytest.approx(expected)
    # At the observed difference the statistic is zero; it falls as the assumed difference grows.
    assert lossless.tango_statistic(10, 2, 100, -0.08) == pytest.approx(0, abs=1e-9)
    assert lossless.tango_statistic(10, 2, 100, -0.2) > expected > lossless.tango_statistic(10, 2, 100, 0.0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 300), st.data())
def test_the_limit_is_below_the_difference_and_falls_with_losses(n: int, data: st.DataObject) -> None:
    losses = data.draw(st.integers(0, n))
    gains = data.draw(st.integers(0, n - losses))
    low = lossless.tango_lower(losses, gains, n)
    assert -1 <= low <= (gains - losses) / n
    if losses + gains < n:
        assert lossless.tango_lower(losses + 1, gains, n) < low + 1e-9


def test_never_on_fewer_than_100_samples() -> None:
    verdict = lossless.judge([0.0] * 99, 0.9, binary=True, margin=0.5)
    assert not verdict.claimed and "too few" in verdict.reason and verdict.needed == 100
    assert lossless.judge([0.0] * 100, 0.9, binary=True, margin=0.05).claimed


def test_the_margin_decides() -> None:
    assert lossless.enough(0.02) == 189 and lossless.enough(0.01) == 381 and lossless.enough(0.1) == 100
    for n, claimed in ((188, False), (189, True)):
        for binary in (True, False):
            verdict = lossless.judge([0.0] * n, 0.9, binary=binary)
            assert verdict.claimed is claimed, (n, binary)
    assert "189 samples are needed" in lossless.judge([0.0] * 150, 0.9, binary=True).reason
    assert not lossless.judge(differences(10, 0, 500), 0.9, binary=True).claimed
    assert lossless.judge(differences(10, 0, 500), 0.9, binary=True, margin=0.04).claimed
    assert lossless.judge(differences(1, 3, 500), 0.9, binary=True).claimed
    assert "2 points or more is ruled out" in lossless.judge(differences(1, 3, 500), 0.9, binary=True).reason


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("n", [5, 20, 100, 188])
def test_perfect_agreement_says_how_many_samples_it_needs(binary: bool, n: int) -> None:
    verdict = lossless.judge([0.0] * n, 0.9, binary=binary)
    assert (verdict.claimed, verdict.needed) == (False, 189)
    assert "189 samples are needed" in verdict.reason


@pytest.mark.parametrize("rate", [0.002, 0.005, 0.01])
def test_so_many_samples_are_enough_if_further_ones_go_as_these_did(rate: float) -> None:
    losses = max(1, round(200 * rate))
    needed = lossless.judge(differences(losses, 0, 200), 0.9, binary=True).needed
    assert needed is not None
    scaled = losses * needed / 200
    assert (
        lossless.tango_lower(scaled, 0, needed)
        > -lossless.MARGIN
        >= lossless.tango_lower(scaled * (needed - 1) / needed, 0, needed - 1)
    )


def test_graded_scores_need_more_samples_the_more_they_scatter() -> None:
    steady, wild = ([swing, -swing] * 60 for swing in (0.05, 0.4))
    few = lossless.judge(steady, 0.9, binary=False).needed
    many = lossless.judge(wild, 0.9, binary=False).needed
    assert few is not None and many is not None
    assert few == 189 and many == pytest.approx((1.96 * 0.4 / 0.02) ** 2, rel=0.01)


def test_no_number_of_samples_is_enough_for_a_loss_beyond_the_margin() -> None:
    verdict = lossless.judge(differences(10, 0, 100), 0.9, binary=True)
    assert not verdict.claimed and verdict.needed is None
    assert lossless.judge([0.0] * 500, 0.005, binary=True).needed is None


def test_nothing_to_lose_is_not_lossless() -> None:
    verdict = lossless.judge([0.0] * 500, 0.005, binary=True)
    assert not verdict.claimed and "nothing to lose" in verdict.reason


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("n", "margin"), [(250, 0.02), (200, 0.05), (500, 0.02)])
def test_a_method_that_loses_the_margin_is_rarely_called_lossless(
    binary: bool, n: int, margin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lossless, "bootstrap_mean", functools.partial(bootstrap_mean, resamples=400))
    rng = np.random.default_rng(n)
    runs = 1500 if binary else 150
    claimed = 0
    for _ in range(runs):
        if binary:
            counts = rng.multinomial(n, [margin + 0.01, 0.01, 1 - margin - 0.02])
            drawn = differences(int(counts[0]), int(counts[1]), n)
        else:
            drawn = (np.where(rng.random(n) < 0.5, rng.normal(-2 * margin, 0.2, n), 0.0)).tolist()
        claimed += lossless.judge(drawn, 0.9, binary=binary, margin=margin).claimed
    # 2.5 % by design; 1,500 runs stray by 0.4 %, 150 by 1.3 %.
    assert claimed / runs <= (0.035 if binary else 0.055)


def test_a_method_that_loses_nothing_is_called_lossless() -> None:
    rng = np.random.default_rng(7)
    found = 0
    for _ in range(200):
        counts = rng.multinomial(600, [0.005, 0.005, 0.99])
        found += lossless.judge(differences(int(counts[0]), int(counts[1]), 600), 0.9, binary=True).claimed
    assert found / 200 > 0.9


def test_bad_input() -> None:
    for margin in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(UsageError, match="margin"):
            lossless.judge([0.0], 0.9, binary=True, margin=margin)
    with pytest.raises(UsageError, match="no samples"):
        lossless.lower_limit([], binary=False)
    for binary in (True, False):
        with pytest.raises(CellError, match="nan"):
            lossless.judge([0.0, math.nan, 0.0], 0.9, binary=binary)
