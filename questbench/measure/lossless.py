"""When a method may be called lossless: a non-inferiority statement with a margin, not the absence of a significance.

"No significant difference" holds for any method if the samples are few. Lossless means the opposite: a loss of more
than the margin is ruled out, at the 2.5 % that is usual for such one-sided statements.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from questbench.errors import UsageError
from questbench.measure import finite
from questbench.measure.stats import Z95, bootstrap_mean

MARGIN = 0.02
"""Largest loss that still counts as none: 2 points of 100."""
SAMPLES = 100
"""On fewer samples nothing is called lossless, whatever the margin."""
LIMIT = 10_000_000
"""Nobody runs more samples than this."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether lossless is claimed, and if not, why not."""

    claimed: bool
    lower: float
    """Lower limit of method less dense: a loss beyond it is ruled out."""
    reason: str
    """A sentence, for the reader of the record."""
    needed: int | None
    """Samples with which lossless could be claimed if further ones went as these did; ``None`` where none would do."""


def judge(
    differences: Sequence[float], dense_low: float, *, binary: bool, margin: float = MARGIN, seed: int = 0
) -> Verdict:
    """Whether ``differences`` (method less dense, sample by sample) rule out a loss of ``margin``.

    Args:
        differences: of scores from 0 to 1.
        dense_low: lower end of dense's own interval; where dense itself is hardly above 0, there is nothing to lose.
        binary: all scores are 0 or 1.
        margin: see :data:`MARGIN`.
        seed: of the bootstrap (graded scores).

    Raises:
        UsageError: no differences, or a margin that is not between 0 and 1.
        CellError: a difference is NaN or infinite.
    """
    if not 0 < margin < 1:
        raise UsageError(f"A margin of {margin:g} is not between 0 and 1.", "Use --margin 0.02 for 2 points of 100.")
    n = len(differences)
    lower = lower_limit(differences, binary=binary, seed=seed)
    points = f"{margin * 100:g} points"
    if dense_low <= margin:
        return Verdict(False, lower, "Dense itself hardly answers: there is nothing to lose.", None)
    needed = samples_needed(differences, margin, binary=binary)
    if lower > -margin and n >= SAMPLES:
        return Verdict(True, lower, f"A loss of {points} or more is ruled out (one-sided, 2.5 %).", needed)
    if needed is None:
        return Verdict(False, lower, f"The loss seen is {points} or more.", None)
    loss = f"A loss of up to {-lower * 100:.2g} points is not ruled out."
    why = f"{n} samples are too few." if n < SAMPLES else loss
    more = f" {needed:,} samples are needed if the others turn out like these." if n < needed else ""
    return Verdict(False, lower, why + more, needed)


def samples_needed(differences: Sequence[float], margin: float, *, binary: bool) -> int | None:
    """Samples that rule out a loss of ``margin`` if losses and gains go on at the rate seen; ``None`` if none do.

    Where none differs it is :func:`enough`: 189 for a margin of 2 points.
    """
    n = len(differences)
    mean = math.fsum(differences) / n
    if mean <= -margin:
        return None
    losses, gains = sum(d < 0 for d in differences) / n, sum(d > 0 for d in differences) / n
    spread = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / n)

    def excluded(count: int) -> bool:
        if binary:
            return tango_lower(losses * count, gains * count, count) > -margin
        unseen = (count * mean - Z95**2) / (count + Z95**2)
        return min(mean - Z95 * spread / math.sqrt(count), unseen) > -margin

    low, high = enough(margin) - 1, enough(margin)
    while not excluded(high):
        low, high = high, 2 * high
        if high > LIMIT:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if excluded(middle) else (middle, high)
    return high


def lower_limit(differences: Sequence[float], *, binary: bool, seed: int = 0) -> float:
    """One-sided 97.5 % lower limit of the mean difference.

    Scores of 0 and 1: Tango's score limit. Graded scores: the bootstrap's, but never higher than what ``z^2`` further
    samples that lose everything would leave; the bootstrap knows only losses that it has seen. Where no sample differs
    both are ``-z^2 / (n + z^2)``.
    """
    n = len(differences)
    if n == 0:
        raise UsageError("There are no samples to compare.", "Score both methods on the same samples, at least one.")
    finite.refuse("difference", differences)
    if binary:
        return tango_lower(sum(d < 0 for d in differences), sum(d > 0 for d in differences), n)
    unseen = (math.fsum(differences) - Z95**2) / (n + Z95**2)
    return min(bootstrap_mean(differences, seed=seed)[0], unseen)


def tango_lower(losses: float, gains: float, n: int, z: float = Z95) -> float:
    """Lower limit of the difference of two paired shares (T. Tango, Statistics in Medicine 17, 1998, eq. 6 and 9).

    It is the difference at which the score test just does not reject. Wald-like intervals are far too short where
    hardly any pair differs, which is where lossless is decided.
    """
    if gains >= n:
        low, high = -1.0, 1.0
    else:
        low, high = -1.0, (gains - losses) / n
    # The statistic falls as the assumed difference grows; 60 halvings are below the precision of a float.
    for _ in range(60):
        middle = (low + high) / 2
        if tango_statistic(losses, gains, n, middle) > z:
            low = middle
        else:
            high = middle
    return low


def tango_statistic(losses: float, gains: float, n: int, difference: float) -> float:
    """Tango's score statistic of "the shares differ by ``difference``"; standard normal if they do."""
    # The share of losses that is most likely under the hypothesis: the larger root of 2n q^2 + B q + C = 0.
    b = (2 * n - gains + losses) * difference - gains - losses
    c = -losses * difference * (1 - difference)
    share = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * share + difference * (1 - difference))
    distance = gains - losses - n * difference
    if variance <= 1e-15:
        return 0.0 if abs(distance) < 1e-12 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def enough(margin: float) -> int:
    """Samples with which lossless can be claimed if none differs, :data:`SAMPLES` at least."""
    return max(SAMPLES, math.floor(Z95**2 * (1 - margin) / margin) + 1)
