"""Order statistics of a few samples, in plain Python because the stopping rule asks for them between timings."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from questbench.errors import UsageError
from questbench.measure import finite


def quantile(values: Sequence[float], q: float) -> float:
    """The ``q``-quantile, linearly interpolated between the two nearest order statistics.

    Args:
        values: samples in any order, at least one.
        q: 0 is the smallest sample, 1 the largest.

    Raises:
        UsageError: no samples.
        CellError: a sample is NaN or infinite; sorting would put it anywhere.
    """
    if not values:
        raise UsageError("There are no samples to summarise.", "Ask for at least one round.")
    finite.refuse("sample", values)
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    if below + 1 >= len(ordered):
        return ordered[-1]
    return ordered[below] + (ordered[below + 1] - ordered[below]) * (place - below)


def median(values: Sequence[float]) -> float:
    """The middle sample, or the mean of the two in the middle."""
    return quantile(values, 0.5)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % confidence interval of the median that assumes no distribution.

    Its ends are the k-th smallest and the k-th largest sample, with the largest k for which a fair coin thrown
    ``len(values)`` times shows fewer than k heads with a probability of at most 2.5 %. Fewer than 6 samples cannot
    bound a median at this level: the interval is then infinite.
    """
    finite.refuse("sample", values)
    k = _rank(len(values))
    if k == 0:
        return -math.inf, math.inf
    ordered = sorted(values)
    return ordered[k - 1], ordered[-k]


def relative_noise(values: Sequence[float]) -> float:
    """Half the width of :func:`median_interval` over the median: 0.01 means "the median is known to 1 %"."""
    low, high = median_interval(values)
    middle = median(values)
    if middle == 0:
        return 0.0 if low == high else math.inf
    return (high - low) / (2 * abs(middle))


@functools.cache
def _rank(n: int) -> int:
    """The k of :func:`median_interval`, with whole numbers only, so that it is exact for every n."""
    tail, term, k = 0, 1, 0
    while 40 * (tail + term) <= 1 << n:
        tail += term
        k += 1
        term = term * (n - k + 1) // k
    return k
