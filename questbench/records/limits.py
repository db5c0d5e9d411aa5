"""When a measured number is surely above what is possible: judged by its interval, alike in records and in tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

FEW = 1.25
"""A handful of samples has no interval; they may all lie on one side, so that as much is added at both ends."""


def ends(value: float, known: Mapping[str, Any]) -> tuple[float, float]:
    """Between which two numbers a median lies: its 95 % interval, or all samples where they are too few for one,
    or the middle of them where no more is known.

    Args:
        value: the median; both ends where nothing else is known.
        known: ``ci_low``, ``ci_high``, ``min``, ``max``, ``p20``, ``p80`` as far as they are there.
    """

    def first(*names: str) -> float | None:
        found = (known.get(name) for name in names)
        return next((float(end) for end in found if isinstance(end, (int, float)) and math.isfinite(end)), None)

    low, high = first("ci_low"), first("ci_high")
    if low is not None and high is not None:
        return low, high
    low, high = first("min"), first("max")
    if low is not None and high is not None:
        return low / FEW, high * FEW
    low, high = first("p20", "ci_low"), first("p80", "ci_high")
    return value if low is None else low, value if high is None else high


def surely_above(value: float, known: Mapping[str, Any], limit: float) -> bool:
    """Whether even the lower end is above the limit."""
    return ends(value, known)[0] > limit
