"""Where the time of a whole model's step goes: linear layers, the ops of attention, the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from questbench.report import style
from questbench.report.plots import _panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KIND = "e2e"
TITLE = (
    "Parts of a decode step of the whole model at the longest text; the diamond is the plain step, timed apart and "
    "without clocks in between. A bar too long for its panel is cut and labelled with its length."
)
AXES = ("seq_len", "budget")
PARTS: dict[str, tuple[str, str]] = {"weights": ("#DDDDDD", ""), **style.STAGES, "rest": ("#444444", "")}


def draw(frame: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """A stacked bar per method, a panel per budget."""
    return _panels.stacked(frame, figure, "tpot", PARTS, whole="plain step")
