"""Summaries and intervals of samples: what stands in the ``stats`` of a record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from questbench.errors import UsageError
from questbench.measure import finite
from questbench.measure.cautions import warnings as warnings
from questbench.measure.order import median as median
from questbench.measure.order import median_interval, quantile, relative_noise
from questbench.seeding import derive

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""
RESAMPLES = 10_000
_CHUNK = 1 << 20


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Numbers that describe samples, in their unit.

    Returns:
        ``n``, ``mean``, ``min``, ``max``, ``p20``, ``p80``, ``p90``, ``p99``, the 95 % interval of the median
        (``ci_low``, ``ci_high``; infinite below 6 samples) and ``noise``, its half width relative to the median.

    Raises:
        CellError: a value is NaN or infinite.
    """
    finite.refuse("sample", values)
    low, high = median_interval(values)
    return {
        "n": len(values),
        "mean": math.fsum(values) / len(values) if values else math.nan,
        "min": min(values, default=math.nan),
        "max": max(values, default=math.nan),
        **{f"p{q}": quantile(values, q / 100) for q in (20, 80, 90, 99)},
        "ci_low": low,
        "ci_high": high,
        "noise": relative_noise(values),
    }


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (E. B. Wilson, JASA 22, 1927); (0, 1) without samples.

    Unlike the textbook interval it is right for 0 or n successes: 20 of 20 is 0.839 to 1.
    """
    if not 0 <= successes <= n:
        raise UsageError(f"{successes} successes in {n} trials make no share.", "Count each sample once.")
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z95**2
    centre = share + z2 / (2 * n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    scale = 1 + z2 / n
    # Rounding would otherwise leave 1 - 1e-17 and -1e-18 where the interval touches its ends.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


def bootstrap_mean(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval of a mean (B. Efron, Ann. Statist. 7, 1979).

    The same values in the same order with the same seed give the same interval. It has no width where all values are
    equal, which says nothing about samples not drawn; prefer :func:`wilson` for scores of 0 and 1, and
    :func:`bounded_mean` for others.

    Raises:
        UsageError: no values.
        CellError: one of them is NaN or infinite.
    """
    if not values:
        raise UsageError("There are no samples to resample.", "Ask for at least one sample.")
    finite.refuse("value", values)
    data = np.asarray(values, dtype=np.float64)
    n = len(data)
    rng = np.random.default_rng(derive(seed, "bootstrap", n))
    means = np.empty(resamples)
    # In parts: all indices at once would take gigabytes for a long list.
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        part = means[start : start + step]
        part[:] = data[rng.integers(0, n, (len(part), n))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def bounded_mean(
    values: Sequence[float], lowest: float, highest: float, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % interval of the mean of graded values, such as scores or their differences.

    The bootstrap knows only what was drawn: where one value in twenty is far from the others, its interval of 20
    samples misses the mean as often as it covers it. So the interval also reaches as far as ``z^2`` further samples
    at either end would move the mean, which for values of 0 and 1 that are all alike is Wilson's interval.

    Args:
        lowest, highest: what a value that was not drawn might be.
    """
    low, high = bootstrap_mean(values, seed=seed, resamples=resamples)
    total, n, z2 = math.fsum(values), len(values), Z95**2
    return min(low, (total + z2 * lowest) / (n + z2)), max(high, (total + z2 * highest) / (n + z2))


def paired_ratios(baseline: Sequence[float], arm: Sequence[float]) -> list[float]:
    """Baseline over arm, round by round: above 1 the arm is faster, and the median is the speed-up.

    Both were timed in the same rounds, so what slowed a whole round down cancels; a ratio of two medians would keep it.

    Raises:
        UsageError: the two do not have the same rounds.
    """
    if len(baseline) != len(arm) or not arm:
        raise UsageError(
            f"{len(baseline)} and {len(arm)} rounds cannot be paired.", "Time both arms in one call of interleave()."
        )
    finite.refuse("time", baseline, arm)
    return [b / a for b, a in zip(baseline, arm, strict=True)]
