"""Heat map of the score over length and depth of the needle: a column per method, a row per budget."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from questbench import units
from questbench.report import style
from questbench.report.plots._base import REMARK, NothingToDraw

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KIND = "accuracy"
TITLE = (
    "Score by length and depth of the needle; the numbers are hits out of samples. "
    "Dense has no budget and is shown again in each row."
)
AXES = ("seq_len", "budget")
COLUMN = "score.by_depth"
MOST_DEPTHS = 21
"""More depths than these are put together in tenths of the text."""
MOST_ROWS = 6
LETTER = 0.066
"""Inches that a letter of a title takes."""
COLOURS = "cividis"
"""Even to the eye, with and without colour vision."""


def draw(frame: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """A panel per method and budget.

    Raises:
        NothingToDraw: no task put its needles at depths.
    """
    data = _fields(frame)
    baseline = data.pop("baseline")
    labels = list(dict.fromkeys([*data.loc[baseline, "label"], *data.loc[~baseline, "label"]]))
    known = sorted(data.loc[~baseline, "budget"].unique())
    budgets = known[:MOST_ROWS] or [None]
    data = data[data["budget"].isin(budgets) | baseline]
    lengths = sorted(data["seq_len"].unique())
    depths = sorted(data["depth"].unique())
    width = style.PAGE if len(labels) > 2 else style.COLUMN * 1.2
    titles = _titles(data, labels, width)
    lines = max(title.count("\n") + 1 for title in titles.values())
    figure.set_size_inches(width, 0.6 + 0.1 * lines + 1.55 * len(budgets))
    grid = figure.subplots(len(budgets), len(labels), squeeze=False, sharex=True, sharey=True)
    image: Any = None
    for row, budget in enumerate(budgets):
        for column, label in enumerate(labels):
            axes = grid[row][column]
            own = data[data["label"] == label]
            if not baseline[own.index].any():
                own = own[own["budget"] == budget]
            image = _panel(axes, own, lengths, depths, room=len(labels) * len(lengths) <= 24)
            if row == 0:
                axes.set_title(titles[label], fontsize=7)
        place = "depth (%)"
        grid[row][0].set_ylabel(place if budget is None else f"budget {units.count(int(budget))}\n{place}")
    narrow = figure.get_size_inches()[0] / (len(labels) * len(lengths)) < 0.4
    for axes in grid[-1]:
        names = [units.count(int(length)) for length in lengths]
        axes.set_xticks(range(len(lengths)), names, rotation=90 if narrow else 0)
    shown = range(0, len(depths), max(1, math.ceil(len(depths) / 6)))
    grid[0][0].set_yticks(list(shown), [f"{depths[place] * 100:.0f}" for place in shown])
    grid[-1][len(labels) // 2].set_xlabel("length of the text (tokens)")
    bar = figure.colorbar(image, ax=list(grid.flat), shrink=0.8, aspect=30, pad=0.01)
    bar.set_label("score (%)")
    if left_out := len(known) - len(budgets):
        data.attrs[REMARK] = f"{left_out} more budgets are not drawn; report runs of fewer budgets to see them."
    return data


def _titles(data: pd.DataFrame, labels: list[str], width: float) -> dict[str, str]:
    """Names above the columns, in lines that are no wider than a column."""
    room = max(8, int((width - 1.2) / len(labels) / LETTER))
    titles = {}
    for label in labels:
        marked = data.loc[data["label"] == label, "yardstick"].any()
        titles[label] = style.in_lines(label, room) + ("\n(yardstick)" if marked else "")
    return titles


def _panel(axes: Axes, own: pd.DataFrame, lengths: list[Any], depths: list[float], *, room: bool) -> Any:
    """Fields of one method at one budget; white where nothing was measured."""
    import numpy as np

    scores = np.full((len(depths), len(lengths)), np.nan)
    for _, field in own.iterrows():
        place = depths.index(field["depth"]), lengths.index(field["seq_len"])
        scores[place] = field["score"] * 100
        if room:
            hits = field["score"] * field["samples"]
            text = f"{hits:.0f}/{field['samples']:.0f}" if math.isclose(hits, round(hits)) else f"{scores[place]:.0f}"
            colour = "black" if field["score"] > 0.55 else "white"
            axes.text(place[1], place[0], text, ha="center", va="center", fontsize=5, color=colour)
    axes.set_facecolor("white")
    axes.grid(False)
    return axes.imshow(scores, cmap=COLOURS, vmin=0, vmax=100, aspect="auto", interpolation="nearest")


def _fields(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per (method, budget, length, depth)."""
    import pandas as pd

    rows = []
    for _, cell in frame[~frame["fallback"]].iterrows():
        depths = cell.get(COLUMN)
        if not isinstance(depths, list):
            continue
        tenths: dict[float, list[float]] = {}
        for depth, samples, total in depths:
            # Tenths are named by their middle; 1.0 belongs to the last one.
            place = depth if len(depths) <= MOST_DEPTHS else min(int(depth * 10), 9) / 10 + 0.05
            sums = tenths.setdefault(round(place, 6), [0.0, 0.0])
            sums[0] += samples
            sums[1] += total
        known = {name: cell[name] for name in ("method", "label", "baseline", "yardstick", "seq_len")}
        known["budget"] = cell.get("budget")
        rows += [
            {**known, "depth": depth, "samples": samples, "score": total / samples}
            for depth, (samples, total) in sorted(tenths.items())
        ]
    if not rows:
        raise NothingToDraw("no task that places its answers at depths")
    return pd.DataFrame(rows)
