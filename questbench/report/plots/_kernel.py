"""What the kernel plots share: panels per budget, and fallbacks left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from questbench import units
from questbench.report import style
from questbench.report.plots._base import NothingToDraw

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def honest(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Cells with a value in ``column`` that are no dense fallback.

    Raises:
        NothingToDraw: there are none.
    """
    if column not in frame or frame[column].isna().all():
        raise NothingToDraw(f"no {column.replace('.', ' ')} in the records")
    kept = frame[~frame["fallback"] & frame[column].notna()]
    if kept.empty:
        raise NothingToDraw("only dense fallbacks")
    return kept


def by_budget(frame: pd.DataFrame, figure: Figure, **panels: Any) -> Iterator[tuple[Axes, pd.DataFrame]]:
    """A panel for every budget."""
    budgets = sorted(frame["budget"].dropna().unique())
    for axes, budget in zip(style.panels(figure, len(budgets), **panels), budgets, strict=True):
        axes.set_title(f"budget {units.count(int(budget))}")
        yield axes, frame[frame["budget"] == budget]
