"""What a reader of a timing must be told: every warning, its full sentence and the rule that raises it."""

from __future__ import annotations

import enum
import itertools
import math
import os
import statistics
from collections.abc import Sequence

from questbench import units
from questbench.measure.order import median, median_interval, quantile, relative_noise
from questbench.measure.stopping import Stop

ROUNDS_LEAST = 20
SPREAD_LIMIT = 1.2
DRIFT_LIMIT = 0.02
OUTLIER_SCORE = 3.5
OUTLIER_SHARE = 0.1
GROUP_SHARE = 0.2
GROUP_VARIANCE = 0.1
GROUP_GAP = 0.1
BUSY_SHARE = 0.1
"""Share of the processor time that other programs may take before it is a warning."""


class Caution(enum.Enum):
    """Why a number may not be trusted; the values are sentences with gaps for what was found."""

    TOO_FEW = "Only {n} rounds were timed, fewer than {least}: take the median as a rough estimate."
    UNSETTLED = "The median is known to {noise} only, the target was {target}: the limit on {limit} was reached first."
    NOISY = "The timings spread widely (p80 is {spread:.2f} times p20): close other programs and repeat."
    DRIFT = "The second half of the rounds differs from the first by {change:+.1%}: clocks or load changed meanwhile."
    BIMODAL = "The timings fall into two groups, around {low} and {high}: the median may jump between runs."
    OUTLIERS = "{share:.0%} of the rounds are outliers (modified z-score above {score}): something else ran as well."
    ABOVE_BANDWIDTH = (
        "Mismeasured: {fraction:.2f} of the read bandwidth was reached, more than there is; the data came from a "
        "cache or fewer bytes were read than claimed."
    )
    ABOVE_IDEAL = (
        "Mismeasured: a speed-up of {speedup:.2f} is above the ideal {ideal:.2f} that the bytes read allow; the data "
        "came from a cache or the baseline is weak."
    )
    THROTTLED = "The GPU lowered its clocks while this was timed ({why}): it is faster when cool and alone."
    EAGER = "Not replayed as a CUDA graph ({why}): launches from Python may have been timed as well."
    BUSY = "This machine was busy before the run began ({why}): close other programs and repeat."
    DISTURBED = (
        "Other programs used {share:.0%} of the processor time that this run could have had while this was timed: "
        "close them and repeat."
    )
    UNSTEADY = (
        "The read bandwidth of this machine moved between {low} and {high} while this was timed (the middle 60 % of "
        "the rounds): something else used the memory, so take times and shares of bandwidth as rough."
    )

    def text(self, **found: object) -> str:
        """The sentence with its gaps filled."""
        return self.value.format(**found)


def warnings(seconds: Sequence[float], *, stopped: Stop | str | None = None, target: float = 0.01) -> list[str]:
    """The sentences that apply to the timings of one arm, in the order in which they were taken.

    Args:
        seconds: one sample per round.
        stopped: why timing ended, where known.
        target: relative noise of the median that was asked for.
    """
    found = []
    if len(seconds) < ROUNDS_LEAST:
        found.append(Caution.TOO_FEW.text(n=len(seconds), least=ROUNDS_LEAST))
    noise = relative_noise(seconds)
    if stopped in (Stop.TIME, Stop.ROUNDS) and len(seconds) >= ROUNDS_LEAST and noise >= target:
        known = math.ceil(noise * 1000) / 1000  # upwards: else it may read like the target
        found.append(Caution.UNSETTLED.text(noise=f"{known:.1%}", target=f"{target:.1%}", limit=stopped))
    spread = quantile(seconds, 0.8) / max(quantile(seconds, 0.2), 1e-12)
    if spread > SPREAD_LIMIT:
        found.append(Caution.NOISY.text(spread=spread))
    if abs(change := drift(seconds)) > DRIFT_LIMIT:
        found.append(Caution.DRIFT.text(change=change))
    if groups := two_groups(seconds):
        low, high = groups
        found.append(Caution.BIMODAL.text(low=units.seconds(low), high=units.seconds(high)))
    elif (share := len(outliers(seconds)) / len(seconds)) > OUTLIER_SHARE:
        found.append(Caution.OUTLIERS.text(share=share, score=OUTLIER_SCORE))
    return found


def drift(seconds: Sequence[float]) -> float:
    """Median of the later half over that of the earlier half, less 1; 0 while their 95 % intervals overlap."""
    half = len(seconds) // 2
    first, second = seconds[:half], seconds[half:]
    if half == 0 or median(first) == 0:
        return 0.0
    (low_a, high_a), (low_b, high_b) = median_interval(first), median_interval(second)
    return median(second) / median(first) - 1 if high_a < low_b or high_b < low_a else 0.0


def outliers(values: Sequence[float]) -> list[int]:
    """Indices of values whose modified z-score exceeds 3.5.

    B. Iglewicz and D. C. Hoaglin, "How to Detect and Handle Outliers", ASQC Quality Press, 1993: the score is
    0.6745 (x - median) / MAD with MAD the median absolute deviation. Where MAD is 0 because more than half of the
    values are equal, the mean absolute deviation times 1.2533 stands in for MAD / 0.6745.
    """
    middle = median(values)
    away = [abs(value - middle) for value in values]
    scale = median(away) / 0.6745 or statistics.fmean(away) * 1.2533
    return [index for index, distance in enumerate(away) if distance > OUTLIER_SCORE * scale]


def two_groups(values: Sequence[float]) -> tuple[float, float] | None:
    """Medians of two well separated groups of values, or ``None`` where there is one group.

    The best cut of the ordered values into two is sought (least variance within). Two groups are reported if each
    holds a fifth of the values, the cut explains 90 % of the variance (75 % for a uniform distribution, 64 % for a
    normal one) and the medians are 10 % apart.
    """
    ordered = sorted(values)
    n, edge = len(ordered), max(int(GROUP_SHARE * len(ordered)), 2)
    mean = statistics.fmean(ordered)
    total = sum((value - mean) ** 2 for value in ordered)
    if n < 2 * edge or total == 0:
        return None
    # The variance between two parts is n1 n2 / n (mean1 - mean2)^2; with centred values one running sum is enough.
    sums = list(itertools.accumulate(value - mean for value in ordered))

    def between(cut: int) -> float:
        return sums[cut - 1] ** 2 * n / (cut * (n - cut))

    cut = max(range(edge, n - edge + 1), key=between)
    low, high = median(ordered[:cut]), median(ordered[cut:])
    apart = low > 0 and high / low - 1 > GROUP_GAP
    return (low, high) if apart and total - between(cut) < GROUP_VARIANCE * total else None


def unsteady(seconds: Sequence[float], size: int) -> str | None:
    """A sentence if a plain read of memory disagrees with itself between rounds.

    Args:
        seconds: of each read.
        size: bytes that one read takes in.
    """
    fast, slow = quantile(seconds, 0.2), quantile(seconds, 0.8)
    if slow <= SPREAD_LIMIT * fast:
        return None
    return Caution.UNSTEADY.text(low=units.rate(size / slow), high=units.rate(size / fast))


def busy(load: float | None = None, cores: int | None = None, others: float | None = None) -> str | None:
    """A sentence if other programs need the processor; to be asked before a run adds its own load.

    Args:
        load: load average of the last minute; of this machine unless given.
        cores: cores that this average is about, all of the machine; counted unless given.
        others: share of this process's processor time that others take (``measure/busy.py``), where it is known.
    """
    if load is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = cores or os.cpu_count() or 1
    why = []
    if load > cores:
        why.append(f"load {load:.1f} on {cores} cores")
    if others is not None and others > BUSY_SHARE:
        why.append(f"other programs used {others:.0%} of the processor time that this run could have")
    return Caution.BUSY.text(why=", ".join(why)) if why else None


def disturbed(others: float | None) -> str | None:
    """A sentence if other programs took processor time while something was timed; see :func:`busy`."""
    return Caution.DISTURBED.text(share=others) if others is not None and others > BUSY_SHARE else None
