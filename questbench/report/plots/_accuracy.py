"""What the accuracy plots share: a panel per task and length, dense as a level, intervals as bars.

Methods that were measured at the same x stand side by side around it, so that their intervals can be told apart. All
panels of a figure have the same x axis; where that is one value only, it is the methods that stand along it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from questbench import units
from questbench.report import style
from questbench.report.plots._base import REMARK, NothingToDraw

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 24
DODGE, CLOSE = 0.3, 0.08
"""Share of the distance between two neighbouring values of x over which the methods of one value are spread, and the
most that stands between two of them."""
FAR = 20
"""Where the largest of the values without limits is so many times the middle one, their axis is logarithmic."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """What stands on the y axis: a fraction, drawn in per cent."""

    column: str
    low: str
    high: str
    name: str
    limits: tuple[float, float] | None = None
    dense: float | None = None
    """Value of dense where its row has none: differences to it are 0."""


SCORE = Measure("score", "score.ci_low", "score.ci_high", "score (%)", limits=(-3, 105))


def draw(
    frame: pd.DataFrame,
    figure: Figure,
    x: str,
    x_label: str,
    measure: Measure = SCORE,
    also: Sequence[str] = ("score.n",),
) -> pd.DataFrame:
    """A measure in per cent over column ``x``, a count of tokens.

    Raises:
        NothingToDraw: no such values, or no sparse method.
    """
    import pandas as pd

    if measure.column not in frame or "task" not in frame:
        raise NothingToDraw(f"no {measure.name.partition(' (')[0]} in the records")
    frame = frame.assign(**{x: _counts(frame, x)})
    shown = (x, measure.column, measure.low, measure.high, *also)
    columns = ["task", "seq_len", "label", "budget", *shown, "yardstick", "baseline"]
    baseline = frame["baseline"]
    if measure.dense is not None:
        frame.loc[baseline, [measure.column, measure.low, measure.high]] = measure.dense
    cells = frame[frame[measure.column].notna() & ~frame["fallback"] & (baseline | frame[x].notna())]
    if cells["baseline"].all():
        raise NothingToDraw(f"no sparse method with a {measure.name.partition(' (')[0]}")
    cells = cells.reindex(columns=list(dict.fromkeys(columns)))
    groups = list(cells.groupby(["task", "seq_len"], sort=False))
    left_out = len(groups) - MOST_PANELS
    groups = groups[:MOST_PANELS]
    looks = style.looks(cells["label"], cells.loc[cells["yardstick"], "label"])
    axes_list = style.panels(figure, len(groups), share_y=measure.limits is not None)
    drawn = pd.concat([part for _, part in groups])
    values = sorted(drawn.loc[~drawn["baseline"], x].unique())
    sparse = style.drawing_order(drawn.loc[~drawn["baseline"], "label"])
    alone = len(values) == 1
    for axes, (_, part) in zip(axes_list, groups, strict=True):
        axes.set_title(f"{part['task'].iloc[0]}, {units.count(int(part['seq_len'].iloc[0]))}")
        places = (
            part["label"].map({label: float(at) for at, label in enumerate(sparse)})
            if alone
            else _dodged(part, x, values)
        )
        ends = _panel(axes, part, x, places, looks, measure)
        if alone:
            axes.set_xticks(
                range(len(sparse)),
                [style.in_lines(label, 16) for label in sparse],
                rotation=90 if len(sparse) > 3 else 0,
            )
            axes.set_xlim(-0.6, len(sparse) - 0.4)
            axes.set_xlabel(f"{x_label}: {units.count(int(values[0])) if values[0] % 1 == 0 else f'{values[0]:.0f}'}")
        else:
            style.count_axis(axes, values, x_label)
        if measure.limits is not None:
            axes.set_ylim(*measure.limits)
        elif _far_apart(part.loc[~part["baseline"], measure.column] * 100):
            style.far_axis(axes, *(float(function(part[measure.column])) * 100 for function in (min, max)))
        if style.leftmost(axes):
            axes.set_ylabel(measure.name)
    if alone:  # the methods' names stand along the axis
        width, height = figure.get_size_inches()
        rows = -(-len(groups) // 3)
        figure.set_size_inches(width, height + 0.5 * rows * (len(sparse) > 3))
        style.legend(figure, axes_list, leave_out=_named(sparse, cells))
    else:
        style.name_lines(figure, axes_list, ends)
    data = drawn.drop(columns="baseline")
    if left_out > 0:
        data.attrs[REMARK] = f"{left_out} more set-ups are not drawn; report fewer tasks or lengths to see them."
    return data


def _far_apart(values: pd.Series[float]) -> bool:
    """Whether one value, such as that of the yardstick ``random``, would squeeze all others into a line."""
    sizes = values.abs()
    return bool(sizes.max() > FAR * max(sizes.median(), style.NEAR))


def _panel(
    axes: Axes, part: pd.DataFrame, x: str, places: pd.Series[float], looks: dict[str, style.Look], measure: Measure
) -> dict[str, tuple[float, str]]:
    """Lines of one panel; the last height and the colour of each."""
    ends = {}
    for label in style.drawing_order(part["label"]):
        line = part[part["label"] == label].sort_values(x)
        value = line[measure.column] * 100
        low, high = (line[name].fillna(line[measure.column]) * 100 for name in (measure.low, measure.high))
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


def _named(labels: Sequence[str], cells: pd.DataFrame) -> list[str]:
    marked = set(cells.loc[cells["yardstick"], "label"])
    return [f"{label} (yardstick)" if label in marked else label for label in labels]


def _dodged(part: pd.DataFrame, x: str, values: Sequence[float]) -> pd.Series[float]:
    """Where on the logarithmic axis the points of the sparse methods are drawn; ``values`` are those of the figure."""
    sparse = part[~part["baseline"]]
    rank = {label: number for number, label in enumerate(style.drawing_order(sparse["label"]))}
    gap = min((math.log2(high / low) for low, high in itertools.pairwise(values)), default=1.0)
    if sparse.groupby(x)["label"].nunique().max() < 2 or sparse[x].nunique() > sparse["budget"].nunique():
        return sparse[x]  # the methods have values of x of their own, which must not be moved
    offset = sparse["label"].map(rank) - (len(rank) - 1) / 2
    step = min(DODGE / max(1, len(rank) - 1), CLOSE)
    return sparse[x] * 2.0 ** (offset * min(gap, 1.0) * step)


def _counts(frame: pd.DataFrame, x: str) -> pd.Series[float]:
    """A count, whether it stands beside the score or is a metric of its own."""
    import pandas as pd

    none = pd.Series(float("nan"), index=frame.index)
    found = frame.get(f"score.{x}", none).fillna(frame.get(f"perplexity.{x}", none))
    return found.fillna(frame.get(x, none))
