"""Score over the entries really read, which is what a budget costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from questbench.report.plots import _accuracy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KIND = "accuracy"
TITLE = "Score over entries read per KV head and step, counted where they are read; bars are 95% intervals."
AXES = ("task", "seq_len", "budget")


def draw(frame: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """A line per method, a panel per task and length."""
    return _accuracy.draw(frame, figure, "tokens_read", "entries read per KV head and step")
