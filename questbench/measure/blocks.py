"""Perplexities of texts and their differences, with intervals that know that neighbouring tokens are alike.

A text comes as a series of windows, each the sum of the losses (nats) of its tokens and their number. Errors of one
passage go together, so that single tokens must not be resampled: blocks of neighbouring windows are (H. R. Künsch,
Ann. Statist. 17, 1989; circular as in D. N. Politis and J. P. Romano, 1992). How long they are is chosen from the data
(:mod:`questbench.measure.correlation`). Blocks never span two texts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from questbench.errors import UsageError
from questbench.measure import correlation, finite
from questbench.measure.paired import sign_flip
from questbench.measure.stats import RESAMPLES, Z95
from questbench.seeding import derive

BLOCK = 512
"""Tokens of a block at least, if the texts are long enough for eight of them."""
FEWEST = 8
"""Windows that an interval of a perplexity needs."""
_CHUNK = 1 << 20

Series = Sequence[tuple[float, int]]
"""Per window: sum of losses in nats, tokens."""


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Of some texts, every token weighing the same."""

    value: float
    """``exp(losses / tokens)``."""
    ci_low: float
    """95 % block-bootstrap interval; 0 and infinity where there are too few windows."""
    ci_high: float
    tokens: int
    """Tokens scored."""


@dataclasses.dataclass(frozen=True)
class PerplexityComparison:
    """A method against dense on the same tokens; above 0 the method is worse."""

    delta: float
    """Perplexity less that of dense."""
    ci_low: float
    """95 % block-bootstrap interval of ``delta``; infinite where there are too few blocks."""
    ci_high: float
    relative: float
    """``delta`` over the perplexity of dense."""
    relative_low: float
    """95 % block-bootstrap interval of ``relative``."""
    relative_high: float
    p_value: float | None
    """Two-sided, of "no difference": signs of whole blocks are flipped. ``None`` where there are too few of them."""
    min_detectable: float | None
    """The smallest relative difference that so many tokens can tell from none; ``None`` if they can tell none."""
    blocks: int
    """Blocks that neither overlap nor touch."""
    block_tokens: int
    """Tokens of a block and the gap behind it, on average."""


def perplexity(texts: Sequence[Series], *, seed: int = 0, resamples: int = RESAMPLES) -> Perplexity:
    """Perplexity of texts with its interval.

    Raises:
        UsageError: no tokens.
        CellError: a loss is NaN or infinite.
    """
    losses, tokens = _totals(texts)
    value = exp(losses / tokens)
    arrays = [_array(text) for text in texts]
    total = sum(map(len, arrays))
    if total < FEWEST:
        return Perplexity(value, 0.0, math.inf, tokens)
    chosen = _cut([text[:, 0] for text in arrays], tokens)
    sums, factor = _resample(arrays, min(chosen.length, total // correlation.FEWEST), seed, resamples)
    low, high = _widened(sums[:, 0] / sums[:, 1] - math.log(value), factor)
    return Perplexity(value, value * exp(low), value * exp(high), tokens)


def compare(
    method: Sequence[Series], dense: Sequence[Series], *, seed: int = 0, resamples: int = RESAMPLES
) -> PerplexityComparison:
    """Compare a method with dense on the same windows of the same texts.

    Raises:
        UsageError: the windows are not the same, or there are none.
        CellError: a loss is NaN or infinite.
    """
    if [[count for _, count in text] for text in method] != [[count for _, count in text] for text in dense]:
        raise UsageError("Two perplexities of different tokens cannot be compared.", "Score the same texts with both.")
    (own, tokens), (base, _) = _totals(method), _totals(dense)
    at_dense = exp(base / tokens)
    gap = (own - base) / tokens
    joined = [np.column_stack([_array(one), _array(two)[:, :1]]) for one, two in zip(method, dense, strict=True)]
    chosen = _cut([text[:, 0] - text[:, 2] for text in joined], tokens)
    parts = [part for text in joined if len(text) for part in chosen.blocks(text)]
    relative, delta = math.expm1(gap), at_dense * math.expm1(gap)
    size = round(tokens / len(parts))
    if len(parts) < correlation.FEWEST:
        none = (-math.inf, math.inf)
        return PerplexityComparison(delta, *none, relative, *none, None, None, len(parts), size)
    p_value = sign_flip([float((part[:, 0] - part[:, 2]).sum()) for part in parts], seed=seed, flips=resamples)
    sums, factor = _resample(joined, chosen.length, seed, resamples)
    gaps = (sums[:, 0] - sums[:, 2]) / sums[:, 1]
    low, high = _widened(gaps - gap, factor)
    deltas = np.exp(sums[:, 0] / sums[:, 1]) - np.exp(sums[:, 2] / sums[:, 1]) - delta
    delta_low, delta_high = _widened(deltas, factor)
    spread = float(np.std(gaps)) * factor
    detectable = math.expm1(Z95 * spread) if spread > 0 else None
    return PerplexityComparison(
        delta,
        delta + delta_low,
        delta + delta_high,
        relative,
        math.expm1(gap + low),
        math.expm1(gap + high),
        p_value,
        detectable,
        len(parts),
        size,
    )


def windows(losses: Sequence[float], size: int) -> list[tuple[float, int]]:
    """Losses of consecutive tokens summed up in windows of ``size``; the last one may be shorter."""
    return [
        (math.fsum(losses[start : start + size]), len(losses[start : start + size]))
        for start in range(0, len(losses), size)
    ]


def exp(value: float) -> float:
    """``e^value``; infinity where that is no number any more."""
    return math.exp(value) if value < 709 else math.inf


def student(freedom: int) -> float:
    """Two-sided 95 % point of Student's t (Cornish and Fisher's expansion; 0.5 % off at 4 degrees of freedom)."""
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / float(freedom) ** power for power, term in enumerate(terms, start=1))


def _array(text: Series) -> NDArray[np.float64]:
    return np.asarray(text, dtype=np.float64).reshape(-1, 2)


def _totals(texts: Sequence[Series]) -> tuple[float, int]:
    tokens = sum(count for text in texts for _, count in text)
    if tokens == 0:
        raise UsageError("There are no scored tokens.", "Use a longer --seq-len or a smaller --budget.")
    finite.refuse("loss", [loss for text in texts for loss, _ in text])
    return math.fsum(loss for text in texts for loss, _ in text), tokens


def _cut(texts: Sequence[NDArray[np.float64]], tokens: int) -> correlation.Cut:
    return correlation.cut(texts, round(BLOCK * sum(map(len, texts)) / tokens))


def _resample(
    texts: Sequence[NDArray[np.float64]], length: int, seed: int, resamples: int
) -> tuple[NDArray[np.float64], float]:
    """Column sums of resampled texts, ``[resamples, columns]``, and by how much their spread is too small."""
    total = sum(map(len, texts))
    length = min(length, *(len(text) for text in texts if len(text)))
    starts = []
    for text in texts:
        if len(text):
            around = np.concatenate([text, text[: length - 1]])
            cumulated = np.concatenate([np.zeros((1, text.shape[1])), np.cumsum(around, axis=0)])
            starts.append(cumulated[length:] - cumulated[:-length])
    blocks = np.concatenate(starts)
    count = round(total / length)
    rng = np.random.default_rng(derive(seed, "blocks", total, length))
    sums = np.empty((resamples, blocks.shape[1]))
    step = max(1, _CHUNK // count)
    for start in range(0, resamples, step):
        part = sums[start : start + step]
        part[:] = blocks[rng.integers(0, len(blocks), (len(part), count))].sum(axis=1)
    # The variance of k draws from k blocks is (k - 1) / k of what it should be, and few blocks have heavy tails.
    return sums, math.sqrt(count / (count - 1)) * student(count - 1) / Z95


def _widened(deviations: NDArray[np.float64], factor: float) -> tuple[float, float]:
    low, high = np.quantile(deviations, [0.025, 0.975])
    return float(low) * factor, float(high) * factor
