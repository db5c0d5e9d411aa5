"""Speed-up over dense beside the most that the saved traffic allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from questbench import units
from questbench.report import style
from questbench.report._kernel_table import mismeasured
from questbench.report.plots import _panels
from questbench.report.plots._base import NothingToDraw

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KIND = "kernel"
TITLE = (
    "Speed-up over dense attention (bars: median of paired ratios, 20th to 80th percentile) and the ideal, which is "
    "the ratio of the traffic (black lines). Where the axis is logarithmic, bars start at 1. A '!' marks a bar above "
    "its ideal: mismeasured."
)
AXES = ("seq_len", "budget")
WIDE = 40
"""Largest over smallest speed-up of a panel from which on the axis is logarithmic, and bars start at 1."""


def draw(frame: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """A group of bars per length, a panel per budget."""
    from matplotlib.ticker import MaxNLocator

    cells = _panels.honest(frame, "speedup.dense")
    cells = cells[~cells["baseline"]]
    if cells.empty:
        raise NothingToDraw("no sparse method")
    cells = cells.assign(mismeasured=[mismeasured(row) is not None for _, row in cells.iterrows()])
    columns = ["budget", "seq_len", "label", "speedup.dense", "speedup.dense.p20", "speedup.dense.p80"]
    cells = cells.reindex(columns=[*columns, "ideal_speedup", "mismeasured"])
    labels = style.drawing_order(cells["label"])[::-1]
    looks = style.looks(labels)
    width = 0.8 / len(labels)
    # Beyond this a linear axis would show the longest text only.
    extremes = cells.groupby("budget")["speedup.dense"].agg(["min", "max"])
    wide = bool((extremes["max"] > WIDE * extremes["min"]).any())
    axes_list = []
    lengths = sorted(cells["seq_len"].unique())
    for axes, part in _panels.by_budget(cells, figure, share_y=False):
        axes_list.append(axes)
        for number, label in enumerate(labels):
            bars = part[part["label"] == label].sort_values("seq_len")
            x = [lengths.index(length) + (number - (len(labels) - 1) / 2) * width for length in bars["seq_len"]]
            value = bars["speedup.dense"]
            spread = style.spread(value, *(bars[f"speedup.dense.{end}"] for end in ("p20", "p80")))
            errors = {"elinewidth": 0.7, "ecolor": "0.25"}
            # A ratio grows from 1 where the axis is logarithmic: down for a loss, up for a gain.
            floor = 1.0 if wide else 0.0
            look = {"yerr": spread, "error_kw": errors, "label": label, **looks[label].bar()}
            axes.bar(x, value - floor, width * 0.92, bottom=floor, **look)
            tops = value + spread[1]
            for at, ideal, top, wrong in zip(x, bars["ideal_speedup"], tops, bars["mismeasured"], strict=True):
                axes.plot([at - width * 0.44, at + width * 0.44], [ideal] * 2, color="black", linewidth=1.2, zorder=4)
                if wrong:
                    axes.annotate("!", (at, max(top, ideal)), ha="center", va="bottom", fontweight="bold")
        axes.plot([], [], color="black", linewidth=1.2, label="ideal")
        axes.axhline(1, color="0.4", linewidth=0.6, linestyle="--", label="dense")
        axes.set_xticks(range(len(lengths)), [units.count(int(length)) for length in lengths])
        axes.set_xlabel("text length (tokens)")
        axes.set_xlim(-0.6, len(lengths) - 0.4)
        # Intervals of a disturbed run may be many times the bars; they leave the panel rather than flatten it.
        tallest = part[["speedup.dense", "ideal_speedup"]].max().max()
        highest = part[["speedup.dense.p80", "ideal_speedup", "speedup.dense"]].max().max()
        top = min(1.05 * highest, 1.6 * tallest)
        if wide:
            axes.set_yscale("log")
            axes.set_ylim(min(0.9, 0.9 * part["speedup.dense"].min()), 1.1 * top)
            style.plain_log_axis(axes)
        else:
            axes.set_ylim(0, top)
            axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        if style.leftmost(axes):
            axes.set_ylabel("speed-up over dense (x)")
    style.legend(figure, axes_list)
    return cells.sort_values(columns[:3], kind="stable")
