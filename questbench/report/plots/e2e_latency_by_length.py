"""Time per token of the whole model over the length of the text, beside what its bytes take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from questbench.report.plots import _panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KIND = "e2e"
TITLE = (
    "Time per token of the whole model: median over text length, bars span the 20th to the 80th percentile. Pale lines "
    "of the same colour: what weights and KV entries take at the measured read bandwidth."
)
AXES = ("seq_len", "budget")


def draw(frame: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """A line per method with its bound, a panel per budget."""
    return _panels.over_length(frame, figure, "tpot", name="time per token", verb="e2e", bound="bound")
