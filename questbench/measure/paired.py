"""Two methods on the same samples: is the difference more than chance, and could one have been seen at all?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from questbench.errors import UsageError
from questbench.measure import finite
from questbench.measure.stats import RESAMPLES, Z95, bounded_mean
from questbench.seeding import derive

ALPHA = 0.05
_EXACT_FLIPS = 14
"""Up to this many differences that are not zero, all 2^m sign patterns are tried instead of drawing some."""
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class PairedComparison:
    """A method against a baseline on identical samples, in the unit of the scores (0.01 is one point of 100)."""

    n: int
    """Pairs."""
    delta: float
    """Mean score less mean baseline score."""
    ci_low: float
    """95 % interval of ``delta``. It shows a size; the p value decides, and near 0.05 they may disagree."""
    ci_high: float
    p_value: float
    """Two-sided, of "no difference": exact McNemar for scores of 0 and 1, sign flips otherwise."""
    losses: int
    """Pairs in which the baseline scored higher."""
    gains: int
    """Pairs in which the method scored higher."""
    min_detectable: float | None
    """The smallest difference that this many samples can tell from none; ``None`` if they can tell none at all."""


def compare(
    scores: Sequence[float], baseline: Sequence[float], *, binary: bool, seed: int = 0, resamples: int = RESAMPLES
) -> PairedComparison:
    """Compare two lists of scores of the same samples in the same order.

    Args:
        scores: of the method, 0 to 1.
        baseline: of the baseline, usually dense.
        binary: all scores are 0 or 1.
        seed: of the bootstrap and the sign flips (graded scores only).
        resamples: of both.

    Raises:
        UsageError: the lists are empty or differ in length, or a binary score is neither 0 nor 1.
        CellError: a score is NaN or infinite.
    """
    n = len(scores)
    if n != len(baseline) or n == 0:
        raise UsageError(
            f"{n} and {len(baseline)} scores cannot be paired.", "Score both methods on the same samples, at least one."
        )
    finite.refuse("score", scores, baseline)
    if binary and not {*scores, *baseline} <= {0.0, 1.0}:
        raise UsageError("A binary score is neither 0 nor 1.", "Declare the task graded (binary = False).")
    differences = [score - base for score, base in zip(scores, baseline, strict=True)]
    losses, gains = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    if binary:
        low, high = matched_interval(losses, gains, n)
        p_value, detectable = mcnemar(losses, gains), smallest_resolvable(n)
    else:
        # Others may differ as much as the largest one seen; where none differs, by all of a score.
        most = max(map(abs, differences)) or 1.0
        low, high = bounded_mean(differences, -most, most, seed=seed, resamples=resamples)
        p_value, detectable = sign_flip(differences, seed=seed, flips=resamples), _graded_resolvable(differences)
    return PairedComparison(n, math.fsum(differences) / n, low, high, p_value, losses, gains, detectable)


def mcnemar(losses: int, gains: int) -> float:
    """Exact two-sided p of McNemar's test: the pairs that differ are throws of a fair coin (Q. McNemar, 1947)."""
    thrown = losses + gains
    tail, ways = 0, 1
    for k in range(min(losses, gains) + 1):
        tail += ways
        ways = ways * (thrown - k) // (k + 1)
    return min(1.0, 2 * tail / (1 << thrown))


def smallest_resolvable(n: int) -> float | None:
    """The smallest difference of two shares that ``n`` pairs can show with p < 0.05, all changes going one way.

    Six pairs that all differ in one direction are the least that is significant, so this is 6 / n: 20 samples cannot
    resolve less than 30 points, 100 not less than 6. ``None`` below 6 samples.
    """
    discordant = next(k for k in range(1, 64) if mcnemar(k, 0) < ALPHA)
    return discordant / n if n >= discordant else None


def matched_interval(losses: int, gains: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares of the same samples.

    A. Agresti and Y. Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in
    Medicine 24, 2005: Wald's interval after half a pair was added to each of the four cells. Unlike the bootstrap it
    keeps a width where no pair differs.
    """
    b, c, total = losses + 0.5, gains + 0.5, n + 2
    centre = (c - b) / total
    half = Z95 * math.sqrt(b + c - (b - c) ** 2 / total) / total
    return max(-1.0, centre - half), min(1.0, centre + half)


def sign_flip(differences: Sequence[float], *, seed: int = 0, flips: int = RESAMPLES) -> float:
    """Two-sided p of "each difference might as well have the other sign", by permutation of the signs.

    Exact for up to 14 differences that are not zero. Beyond, patterns are drawn and the one observed counts as one of
    them, so that p is never 0 (B. Phipson and G. K. Smyth, 2010).

    Raises:
        CellError: a difference is NaN or infinite.
    """
    finite.refuse("difference", differences)
    data = np.asarray([d for d in differences if d != 0.0], dtype=np.float64)
    # Sums that are equal on paper differ in the last digits by the order of their terms.
    observed = abs(math.fsum(data)) - 1e-9 * float(np.abs(data).sum())
    if len(data) == 0:
        return 1.0
    if len(data) <= _EXACT_FLIPS:
        patterns = (np.arange(1 << len(data))[:, None] >> np.arange(len(data))) & 1
        return float(np.mean(np.abs(_signed(patterns, data)) >= observed))
    rng = np.random.default_rng(derive(seed, "sign-flip", len(data)))
    step, reached = max(1, _CHUNK // len(data)), 0
    for start in range(0, flips, step):
        patterns = rng.integers(0, 2, (min(step, flips - start), len(data)))
        reached += int(np.sum(np.abs(_signed(patterns, data)) >= observed))
    return (reached + 1) / (flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for being tested together, in the order given (S. Holm, Scand. J. Statist. 6, 1979).

    Raises:
        CellError: one of them is NaN.
    """
    finite.refuse("p value", p_values)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _signed(patterns: NDArray[np.int64], data: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of ``data`` with the signs that each row of zeros and ones stands for."""
    return (2.0 * patterns - 1.0) @ data


def _graded_resolvable(differences: Sequence[float]) -> float | None:
    """1.96 standard errors of the mean difference; the binary value while the differences do not vary."""
    n = len(differences)
    spread = float(np.std(differences, ddof=1)) if n > 1 else 0.0
    return Z95 * spread / math.sqrt(n) if spread > 0 else smallest_resolvable(n)
