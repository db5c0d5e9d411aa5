"""When a measured number is surely above what is possible: judged by its interval, alike in records and in tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def ends(value: float, known: Mapping[str, Any]) -> tuple[float, float]:
    """Between which two numbers a median lies: its 95 % interval, or all samples where they are too few for one,
    or the middle of them where no more is known.

    Args:
        value: the median; both ends where nothing else is known.
        known: ``ci_low``, ``ci_high``, ``min``, ``max``, ``p20``, ``p80`` as far as they are there.
    """

    def first(*names: str) -> float:
        for name in names:
            found = known.get(name)
            if isinstance(found, (int, float)) and math.isfinite(found):
                return float(found)
        return value

    return first("ci_low", "min", "p20"), first("ci_high", "max", "p80")


def surely_above(value: float, known: Mapping[str, Any], limit: float) -> bool:
    """Whether even the lower end is above the limit."""
    return ends(value, known)[0] > limit
