"""Every statistic refuses NaN and infinity: what compares false with everything would otherwise look significant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from questbench.errors import CellError
from questbench.measure import blocks, lossless, order, paired, stats

GOOD = [0.2, 0.4, 0.1, 0.8] * 5


def texts(losses: Sequence[float]) -> list[blocks.Series]:
    return [[(loss, 64) for loss in losses]]


STATISTICS: dict[str, Callable[[list[float]], Any]] = {
    "compare": lambda bad: paired.compare(bad, GOOD, binary=False),
    "compare, baseline": lambda bad: paired.compare(GOOD, bad, binary=False),
    "compare, binary": lambda bad: paired.compare(bad, GOOD, binary=True),
    "sign_flip": paired.sign_flip,
    "sign_flip, exact": lambda bad: paired.sign_flip([*bad[:4], bad[7]]),
    "holm": paired.holm,
    "bootstrap_mean": stats.bootstrap_mean,
    "bounded_mean": lambda bad: stats.bounded_mean(bad, 0.0, 1.0),
    "summary": stats.summary,
    "paired_ratios": lambda bad: stats.paired_ratios(bad, GOOD),
    "median": order.median,
    "median_interval": order.median_interval,
    "lossless": lambda bad: lossless.judge(bad, 0.9, binary=False),
    "perplexity": lambda bad: blocks.perplexity(texts(bad)),
    "perplexities": lambda bad: blocks.compare(texts(bad), texts(GOOD)),
    "perplexities, dense": lambda bad: blocks.compare(texts(GOOD), texts(bad)),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", STATISTICS)
def test_one_value_that_is_no_number_is_refused(name: str, value: float) -> None:
    bad = [*GOOD[:7], value, *GOOD[8:]]
    with pytest.raises(CellError, match=f"is {value}"):
        STATISTICS[name](bad)
