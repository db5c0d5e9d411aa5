"""How far apart values of a series must be to tell nothing of each other, and blocks that are so far apart.

Errors of one passage go together, so that neighbouring windows of a text are no evidence of their own. Blocks with gaps
between them are (S. Bernstein, Math. Ann. 97, 1927): the gap is chosen from the data, and the share of the data that
gaps take is small where there is much of it. ``scripts/block_simulation.py`` shows what that does to false alarms.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST = 16
"""Blocks that a series is cut into at most: longer blocks hide correlations that no estimate shows."""
FEWEST = 6
"""Blocks that a test needs; six of one sign are the least that is significant."""
NEGLIGIBLE = 0.1
"""A gap ends where the correlation has fallen to this."""
HIGHEST = 0.97

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Cut:
    """How series are cut into blocks; both numbers count values of a series."""

    length: int
    """Of a block and the gap behind it."""
    gap: int
    """Values between two blocks, which belong to none."""

    def blocks(self, series: Array) -> list[Array]:
        """The blocks of one series, the whole of it where it is shorter than two; rows are values."""
        count = max(1, (len(series) + self.gap) // self.length)
        edges = np.linspace(0, len(series) + self.gap, count + 1).round().astype(int)
        return [series[first : last - self.gap] for first, last in itertools.pairwise(edges)]


def cut(series: Sequence[Array], least: int) -> Cut:
    """Choose blocks for some series, which are independent of each other.

    The gap is the longer of two. Under an autoregression of first order, the lag at which an upper estimate of the
    correlation (that of lag 1, its bias removed, one standard error added) falls to :data:`NEGLIGIBLE`. And, whatever
    the process, the last lag before the correlations stay insignificant (D. N. Politis and H. White, Econometric
    Reviews 23, 2004). A block is three gaps long or more.

    Args:
        series: of one value per window, not all empty.
        least: length of a block, unless that leaves less than eight.
    """
    sizes = [len(one) for one in series if len(one)]
    total = sum(sizes)
    correlations = _autocorrelations(series, total, max(sizes))
    first = correlations[1] if len(correlations) > 1 else 0.0
    upper = first + (1 + 4 * first) * len(sizes) / total + 1 / math.sqrt(total)
    gap = _last_significant(correlations, total)
    if upper > NEGLIGIBLE:
        gap = max(gap, math.ceil(math.log(NEGLIGIBLE) / math.log(min(upper, HIGHEST))))
    return Cut(max(3 * gap + 1, math.ceil(total / MOST), min(least, max(1, total // 8))), gap)


def _autocorrelations(series: Sequence[Array], total: int, longest: int) -> Array:
    """Of lags 0, 1, ..., every series about its own mean."""
    lags = min(longest - 1, math.ceil(math.sqrt(total)) + _run(total))
    sums: Array = np.zeros(lags + 1)
    for one in series:
        if len(one):
            about = one - one.mean()
            own = np.correlate(about, about, "full")[len(one) - 1 :][: lags + 1]
            sums[: len(own)] += own
    if sums[0] > 0:
        sums /= sums[0]
    return sums


def _run(total: int) -> int:
    """So many correlations in a row must be insignificant."""
    return max(5, math.ceil(math.sqrt(math.log10(total))))


def _last_significant(correlations: Array, total: int) -> int:
    bound = 2 * math.sqrt(math.log10(total) / total)
    large = np.flatnonzero(np.abs(correlations) >= bound)
    run = _run(total)
    # The first lag behind which a whole run is small; what stands out far behind is chance.
    return next((int(lag) for lag in [0, *large[large > 0]] if not np.any((large > lag) & (large <= lag + run))), 0)
