"""No statistic is made of NaN: whatever compares or averages values refuses it, lest it look like a result."""

from __future__ import annotations

import math
from collections.abc import Iterable

from questbench.errors import CellError


def refuse(what: str, *groups: Iterable[float]) -> None:
    """Refuse values that are not finite numbers.

    NaN compares false with everything: a test that counts "at least as extreme" would find none and report p = 0.

    Args:
        what: names one of the values, for the message: "score".
        groups: the values.

    Raises:
        CellError: one of them is NaN or infinite.
    """
    for values in groups:
        for place, value in enumerate(values):
            if not math.isfinite(value):
                raise CellError(
                    f"A {what} is {value} (number {place + 1}), not a number: nothing can be concluded from it.",
                    "Try --dtype fp32; NaN mostly comes from a model that has left the range of its dtype.",
                )
