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


def read_fraction(seq_len: int, budget: int, page_size: int) -> float:
    """Share of dense traffic that a step with page bounds must read: 1/S + B/L.

    The load ratio of Quest (Tang et al., arXiv 2406.10774, section 3): two bounds per page of S tokens are as much as
    one token's key and value, which is 1/S of the cache, and B of L tokens are attended. It is 1 where the text fits
    the budget, since such a step is dense and needs no bounds, and above 1 just beyond, where bounds cost more than
    they save.

    Args:
        seq_len: tokens in the cache, L.
        budget: tokens attended, B.
        page_size: tokens per page, S.
    """
    if min(seq_len, budget, page_size) < 1:
        raise UsageError(
            f"Text {seq_len}, budget {budget} and page size {page_size} must be positive.", "Check the three values."
        )
    return 1.0 if seq_len <= budget else 1 / page_size + budget / seq_len


def ideal_speedup(seq_len: int, budget: int, page_size: int) -> float:
    """Speed-up over dense attention of a step that only ever waits for memory: 1 / :func:`read_fraction`."""
    return 1 / read_fraction(seq_len, budget, page_size)


def bandwidth_fraction(traffic: float, seconds: float, bandwidth: float) -> float:
    """Share of ``bandwidth`` (bytes per second) that reading ``traffic`` bytes in ``seconds`` amounts to."""
    return traffic / seconds / bandwidth


def above_ideal(ratios: Sequence[float], ideal: float) -> list[str]:
    """The warning, if there is one, for a speed-up over our own dense attention that the bytes do not allow.

    Args:
        ratios: one per round; judged is the interval of their median, which may lie above the ideal by chance.
        ideal: see :func:`ideal_speedup`.
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
