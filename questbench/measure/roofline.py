"""What the bytes allow: ideal speed-up, time at full bandwidth, and results too good to be true."""

from __future__ import annotations

import math
from collections.abc import Sequence

from questbench.errors import UsageError
from questbench.measure.cautions import Caution
from questbench.measure.order import median, median_interval
from questbench.records.limits import surely_above

LARGE = 50
"""A step that reads this many caches finds at most a fiftieth of it in the cache, even over a single copy."""


def above_ideal(ratios: Sequence[float], ideal: float) -> list[str]:
    """The warning, if there is one, for a speed-up over our own dense attention that the bytes do not allow.

    Args:
        ratios: one per round; judged is the interval of their median, which may lie above the ideal by chance.
        ideal: bytes that dense must read over those that the method must.
    """
    value = median(ratios)
    above = surely_above(value, _spread(ratios), ideal)
    return [Caution.ABOVE_IDEAL.text(speedup=value, ideal=ideal)] if above else []


def above_bandwidth(fractions: Sequence[float]) -> list[str]:
    """The warning, if there is one, for more bytes per second than the machine can read; judged as the ideal is."""
    value = median(fractions)
    above = surely_above(value, _spread(fractions), 1.0)
    return [Caution.ABOVE_BANDWIDTH.text(fraction=value)] if above else []


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, high = median_interval(values)
    return {"ci_low": low, "ci_high": high, "min": min(values), "max": max(values)}


def copies_needed(bytes_per_step: int, cache_bytes: int) -> int:
    """Copies of the data to rotate over so that every step reads from memory.

    Step i reads copy i modulo the number of copies. A byte read last in one step may be read first in the next step on
    the same copy; between the two lie the whole steps on all other copies, which must fill the last-level cache.

    Args:
        bytes_per_step: what one step reads of one copy.
        cache_bytes: size of the last-level cache.
    """
    if bytes_per_step < 1 or cache_bytes < 0:
        raise UsageError(
            f"A step that reads {bytes_per_step} bytes cannot be kept out of a cache of {cache_bytes} bytes.",
            "Use a longer text.",
        )
    return math.ceil(cache_bytes / bytes_per_step) + 1
