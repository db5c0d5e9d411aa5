"""Time of one decode step of one layer over the length of the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from questbench.report.plots import _panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KIND = "kernel"
TITLE = "Decode attention of one layer: median time over text length; bars span the 20th to the 80th percentile."
AXES = ("seq_len", "budget")


def draw(frame: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """A line per method, a panel per budget."""
    return _panels.over_length(frame, figure, "latency", name="latency", verb="kernel")
