"""Ideals and flags against numbers worked out by hand, and the rotation against a simulated cache."""

from __future__ import annotations

from collections import OrderedDict

import pytest

from questbench.errors import UsageError
from questbench.measure import roofline
from questbench.measure.cautions import Caution

KIB = 1024


def test_above_the_limit_by_interval() -> None:
    ratios = [8.0, 8.1, 8.2, 7.9, 8.15, 8.1, 8.05, 8.2]
    assert roofline.above_ideal(ratios, 8.0) == [], "8.1 against 8.0, but the interval holds the ideal"
    (too_fast,) = roofline.above_ideal([8.3 + 0.01 * i for i in range(20)], 8.0)
    assert too_fast.startswith("Mismeasured: a speed-up of 8.3")
    assert roofline.above_bandwidth([0.9, 1.2] * 10) == []
    (too_much,) = roofline.above_bandwidth([1.25] * 20)
    assert too_much == Caution.ABOVE_BANDWIDTH.text(fraction=1.25) and "1.25" in too_much


def test_few_samples_must_be_far_above() -> None:
    assert roofline.above_bandwidth([5.5, 5.6, 5.4]) and not roofline.above_bandwidth([5.5, 0.9, 5.4])
    assert roofline.above_ideal([1.03, 1.01], 1.02) == []
    assert roofline.above_ideal([1.04, 1.03, 1.03], 1.02) == [], "three samples above it may be chance"


class Cache:
    """A least-recently-used cache of lines."""

    def __init__(self, lines: int) -> None:
        self.lines, self.held, self.hits = lines, OrderedDict[object, None](), 0

    def read(self, line: object) -> None:
        if line in self.held:
            self.hits += 1
            self.held.move_to_end(line)
        else:
            self.held[line] = None
            if len(self.held) > self.lines:
                self.held.popitem(last=False)


@pytest.mark.parametrize("per_step", [1, 3, 7, 16, 31, 32, 33, 100])
def test_rotation_never_hits_the_cache_in_any_order(per_step: int) -> None:
    cache = Cache(32)
    copies = roofline.copies_needed(per_step, cache.lines)
    assert (copies - 1) * per_step >= cache.lines
    for step in range(3 * copies):
        # Forwards on one lap, backwards on the next: the worst that a method can do.
        lines = range(per_step) if (step // copies) % 2 else reversed(range(per_step))
        for line in lines:
            cache.read((step % copies, line))
    assert cache.hits == 0


def test_rotation_is_no_larger_than_needed() -> None:
    assert roofline.copies_needed(32, 32) == 2
    assert roofline.copies_needed(1000, 32) == 2
    assert roofline.copies_needed(8 << 20, 32 << 20) == 5
    assert roofline.copies_needed(5, 0) == 1
    with pytest.raises(UsageError):
        roofline.copies_needed(0, 32)
