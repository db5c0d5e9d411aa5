"""How blocks are chosen and cut: known answers."""

from __future__ import annotations

import numpy as np
import pytest

from questbench.measure.correlation import FEWEST, MOST, Cut, cut


def test_blocks_do_not_touch_and_cover_the_rest() -> None:
    (one, two, three) = Cut(length=10, gap=2).blocks(np.arange(30.0))
    assert (one[0], one[-1], two[0], two[-1], three[0], three[-1]) == (0, 8, 11, 18, 21, 29)
    (whole,) = Cut(length=10, gap=2).blocks(np.arange(17.0))
    assert len(whole) == 17, "a series of less than two blocks is one"


def test_values_that_know_nothing_of_each_other_give_as_many_blocks_as_allowed() -> None:
    noise = np.random.default_rng(0).normal(size=2048)
    found = cut([noise], least=8)
    assert found.gap <= 1 and found.length == 2048 / MOST


def test_the_gap_grows_with_the_correlation() -> None:
    noise = np.random.default_rng(1).normal(size=8192)
    gaps = [cut([np.convolve(noise, np.ones(width), "valid")], least=8).gap for width in (1, 4, 16, 64)]
    assert gaps == sorted(set(gaps))
    assert 4 <= gaps[1] <= 12 and 16 <= gaps[2] <= 50


def test_a_slow_drift_under_much_noise_is_seen_in_a_long_series() -> None:
    """Neighbours correlate by a fifth only, which alone would make a gap of two."""
    slow = np.repeat(np.random.default_rng(3).normal(size=128), 16) + np.random.default_rng(4).normal(size=2048) * 2
    assert cut([slow], least=8).gap >= 8


def test_each_series_is_taken_about_its_own_mean() -> None:
    rng = np.random.default_rng(5)
    apart = [rng.normal(mean, 1, 64) for mean in (0, 100, -100, 50)]
    assert cut(apart, least=8).gap <= 2


@pytest.mark.parametrize("size", [1, 2, 8, 16])
def test_short_and_constant_series(size: int) -> None:
    found = cut([np.zeros(size)], least=8)
    assert found.length >= 1 and len(found.blocks(np.zeros(size))) < FEWEST
    assert cut([np.ones(16), np.zeros(0), np.ones(1)], least=8).length >= 1
