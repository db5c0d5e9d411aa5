"""Perplexity over the budget, as the difference to dense on the same tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from questbench.report.plots import _accuracy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KIND = "accuracy"
TITLE = (
    "Perplexity over budget as the difference to dense on the same tokens, lower is better; bars are paired 95% "
    "intervals from a bootstrap of blocks of neighbouring tokens."
)
AXES = ("task", "seq_len", "budget")
MEASURE = _accuracy.Measure(
    "perplexity.relative_vs_dense",
    "perplexity.relative_ci_low",
    "perplexity.relative_ci_high",
    "perplexity against dense (%)",
    dense=0.0,
)


def draw(frame: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """A line per method, a panel per text and length."""
    if "perplexity" in frame:
        frame = frame[frame["perplexity"].notna()]
    return _accuracy.draw(frame, figure, "budget", "budget (tokens)", MEASURE, also=("perplexity",))
