"""Where the time of a decode step goes: append, score, select, attend, evict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from questbench.report import style
from questbench.report.plots import _panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KIND = "kernel"
TITLE = (
    "Time of each stage of a decode step at the longest text; the diamond is the whole step, which was timed apart "
    "and without clocks between its stages. A bar too long for its panel is cut and labelled with its length."
)
AXES = ("seq_len", "budget")


def draw(frame: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """A stacked bar per method, a panel per budget."""
    return _panels.stacked(frame, figure, "latency", style.STAGES, whole="whole step")
