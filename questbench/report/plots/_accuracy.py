"""What the accuracy plots share: a panel per task and length, dense as a level, intervals as bars.

Methods that were measured at the same x stand side by side around it, so that their intervals can be told apart.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from questbench import units
from questbench.report import style
from questbench.report.frame import BASELINES
from questbench.report.plots._base import REMARK, NothingToDraw

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 24
DODGE = 0.3
"""Share of the distance between two neighbouring values of x over which the methods of one value are spread."""


def draw(frame: pd.DataFrame, figure: Figure, x: str, x_label: str) -> pd.DataFrame:
    """Score in per cent over column ``x``, a count of tokens.

    Raises:
        NothingToDraw: no scores, or no sparse method.
    """
    if "score" not in frame or "task" not in frame:
        raise NothingToDraw("no scores in the records")
    frame = frame.assign(**{x: _counts(frame, x)})
    columns = [
        "task",
        "seq_len",
        "label",
        "budget",
        x,
        "score",
        "score.ci_low",
        "score.ci_high",
        "score.n",
        "yardstick",
    ]
    cells = frame[frame["score"].notna() & ~frame["fallback"]]
    baseline = cells["method"].isin(BASELINES)
    if (~baseline & cells[x].notna()).sum() == 0:
        raise NothingToDraw("no sparse method with a score")
    cells = cells[baseline | cells[x].notna()]
    cells = cells.reindex(columns=list(dict.fromkeys(columns))).assign(baseline=baseline)
    groups = list(cells.groupby(["task", "seq_len"], sort=False))
    left_out = len(groups) - MOST_PANELS
    groups = groups[:MOST_PANELS]
    looks = style.looks(cells["label"], cells.loc[cells["yardstick"], "label"])
    axes_list = style.panels(figure, len(groups))
    drawn = []
    for axes, (_, part) in zip(axes_list, groups, strict=True):
        axes.set_title(f"{part['task'].iloc[0]}, {units.count(int(part['seq_len'].iloc[0]))}")
        drawn.append(part)
        ends = _panel(axes, part, x, looks)
        style.count_axis(axes, part.loc[~part["baseline"], x].unique(), x_label)
        axes.set_ylim(-3, 105)
        if style.leftmost(axes):
            axes.set_ylabel("score (%)")
    style.name_lines(figure, axes_list, ends)
    import pandas as pd

    data = pd.concat(drawn).drop(columns="baseline")
    if left_out > 0:
        data.attrs[REMARK] = f"{left_out} more set-ups are not drawn; report fewer tasks or lengths to see them."
    return data


def _panel(axes: Axes, part: pd.DataFrame, x: str, looks: dict[str, style.Look]) -> dict[str, tuple[float, str]]:
    """Lines of one panel; the last height and the colour of each."""
    ends = {}
    places = _dodged(part, x)
    for label in style.drawing_order(part["label"]):
        line = part[part["label"] == label].sort_values(x)
        value = line["score"] * 100
        low, high = (line[name].fillna(line["score"]) * 100 for name in ("score.ci_low", "score.ci_high"))
        look = looks[label]
        name = f"{label} (yardstick)" if line["yardstick"].any() else label
        if line["baseline"].any():
            axes.axhspan(low.iloc[0], high.iloc[0], color=look.colour, alpha=0.07, linewidth=0)
            axes.axhline(value.iloc[0], color=look.colour, linestyle=look.dash, linewidth=0.9, label=name)
        else:
            spread = style.spread(value, low, high)
            axes.errorbar(places[line.index], value, yerr=spread, label=name, elinewidth=0.6, **look.line())
        ends[name] = (float(value.iloc[-1]), look.colour)
    return ends


def _dodged(part: pd.DataFrame, x: str) -> pd.Series[float]:
    """Where on the logarithmic axis the points of the sparse methods are drawn."""
    sparse = part[~part["baseline"]]
    rank = {label: number for number, label in enumerate(style.drawing_order(sparse["label"]))}
    values = sorted(sparse[x].unique())
    gap = min((math.log2(high / low) for low, high in itertools.pairwise(values)), default=1.0)
    if sparse.groupby(x)["label"].nunique().max() < 2 or len(values) > len(set(sparse["budget"])):
        return sparse[x]  # the methods have values of x of their own, which must not be moved
    offset = sparse["label"].map(rank) - (len(rank) - 1) / 2
    return sparse[x] * 2.0 ** (offset * min(gap, 1.0) * DODGE / max(1, len(rank) - 1))


def _counts(frame: pd.DataFrame, x: str) -> pd.Series[float]:
    """A count, whether it stands beside the score or is a metric of its own."""
    import pandas as pd

    none = pd.Series(float("nan"), index=frame.index)
    return frame.get(f"score.{x}", none).fillna(frame.get(x, none))
