"""Where the time of a decode step goes: append, score, select, attend, evict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from questbench import units
from questbench.report import _format as fmt
from questbench.report import style
from questbench.report.frame import BASELINES
from questbench.report.plots import _kernel
from questbench.report.plots._base import NothingToDraw

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KIND = "kernel"
TITLE = (
    "Time of each stage of a decode step at the longest text; the diamond is the whole step, which was timed apart "
    "and without clocks between its stages. A bar that leaves the panel says its length."
)
AXES = ("seq_len", "budget")


def draw(frame: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """A stacked bar per method, a panel per budget."""
    known = [stage for stage in style.STAGES if f"latency.{stage}" in frame]
    if not known:
        raise NothingToDraw("no stages in the records")
    columns = [f"latency.{stage}" for stage in known]
    cells = frame[~frame["fallback"] & frame[columns].notna().any(axis=1)]
    if cells.empty:
        raise NothingToDraw("only dense fallbacks")
    cells = cells[cells["seq_len"] == cells["seq_len"].max()]
    cells = cells.reindex(columns=["seq_len", "budget", "label", *columns, "latency"])
    divisor, unit = fmt.scale(cells["latency"], "s")
    limit = _limit(cells, columns) / divisor
    labels = style.drawing_order(cells["label"])
    axes_list = []
    for axes, part in _kernel.by_budget(cells, figure, height=0.24 * len(labels) + 0.75):
        axes_list.append(axes)
        rows = {label: len(labels) - 1 - index for index, label in enumerate(labels)}
        y = part["label"].map(rows)
        left = part["latency"] * 0.0
        left = left.fillna(0.0)
        for stage, column in zip(known, columns, strict=True):
            colour, hatch = style.STAGES[stage]
            size = part[column].fillna(0.0) / divisor
            look: dict[str, Any] = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.3, "hatch": hatch}
            axes.barh(y, size, 0.68, left=left, label=stage, **look)
            left = left + size
        axes.plot(part["latency"] / divisor, y, "D", color="black", markersize=3, label="whole step")
        for at, size in zip(y, left, strict=True):
            if size > limit:  # written out, since the bar does not end within the panel
                text = f"{units.significant(size)} {unit} »"
                axes.annotate(text, (limit * 0.97, at), ha="right", va="center", color="white", fontsize=7)
        axes.set_yticks(list(rows.values()), list(rows))
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, limit)
        axes.set_xlabel(f"time ({unit})")
        length = units.count(int(cells["seq_len"].iloc[0]))
        axes.set_title(f"{axes.get_title()}, length {length}")
    style.legend(figure, axes_list)
    drawn: pd.DataFrame = cells.rename(columns={name: f"{name}_seconds" for name in [*columns, "latency"]})
    return drawn


def _limit(cells: pd.DataFrame, columns: list[str]) -> float:
    """End of the time axis: the longest sparse step; dense bars may leave the panel if they dwarf it."""
    total = cells[columns].sum(axis=1).combine(cells["latency"].fillna(0.0), max)
    sparse = total[~cells["label"].isin(BASELINES)]
    longest = float(total.max())
    return min(longest, 2.0 * float(sparse.max())) * 1.05 if len(sparse) else longest * 1.05
