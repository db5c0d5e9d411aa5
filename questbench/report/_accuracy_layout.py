"""What the tables of scores and of perplexities share: a layout, and how differences and p values are written."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from questbench.report import _format as fmt
from questbench.report._columns import Column, Shown
from questbench.report.render import NONE

if TYPE_CHECKING:
    import pandas as pd

PER_CENT = 0.01


@dataclasses.dataclass(frozen=True)
class Layout:
    """The columns between the method's name and the counts."""

    metric: str
    """Column of the frame that holds the headline number."""
    columns: list[Column]
    """The headline comes first; the second is a count that a fallback shows too."""
    versus: str
    """Header of the difference to dense."""
    setup: list[str]
    """Lines under the table about all of it."""
    higher_is_better: bool


def difference(value: str, interval: str) -> Shown:
    """In per cent, ``-28 [-40, -15]`` with its sign; the bracket only where there is a finite one."""

    def shown(row: Any) -> str:
        number = row.get(value)
        if fmt.missing(number):
            return NONE
        sign = "" if number < 0 else "+"
        low, high = (row.get(f"{interval}_{end}") for end in ("low", "high"))
        if fmt.missing(low) or fmt.missing(high) or not (math.isfinite(low) and math.isfinite(high)):
            return sign + fmt.number(number, PER_CENT)
        return f"{sign}{fmt.number(number, PER_CENT)} [{fmt.number(low, PER_CENT)}, {fmt.number(high, PER_CENT)}]"

    return shown


def significance(row: Any, metric: str) -> Any:
    """The p value of a row, corrected where a correction was made."""
    corrected = row.get("p_holm")
    return row.get(f"{metric}.p_value") if fmt.missing(corrected) else corrected


def p_value(metric: str) -> Shown:
    """:func:`significance` in words."""

    def shown(row: Any) -> str:
        p = significance(row, metric)
        return NONE if fmt.missing(p) else "<0.001" if p < 0.001 else fmt.number(p)

    return shown


def holm_header(frame: pd.DataFrame) -> tuple[str, str]:
    """Header of the p values, and what they are."""
    families = sorted({int(value) for value in fmt.column(frame, "p_holm.family") if value is not None})
    plain = "p: paired test against dense on the same samples"
    if not families or families == [1]:  # a single comparison needs no correction
        return "p", plain
    sizes = " or ".join(map(str, families))
    return "p\n(Holm)", f"{plain}, corrected for the {sizes} comparisons of the run (Holm)"
