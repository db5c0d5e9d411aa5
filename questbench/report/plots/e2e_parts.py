"""Where the time of a whole model's step goes: linear layers, the five ops, the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from questbench import units
from questbench.report import _format as fmt
from questbench.report import style
from questbench.report.plots import _kernel
from questbench.report.plots._base import NothingToDraw

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KIND = "e2e"
TITLE = (
    "Parts of a decode step of the whole model at the longest text; the diamond is the plain step, timed apart and "
    "without clocks in between."
)
AXES = ("seq_len", "budget")
PARTS: dict[str, tuple[str, str]] = {"weights": ("#DDDDDD", ""), **style.STAGES, "rest": ("#444444", "")}


def draw(frame: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """A stacked bar per method, a panel per budget."""
    known = [part for part in PARTS if f"tpot.{part}" in frame]
    if not known:
        raise NothingToDraw("no parts in the records")
    columns = [f"tpot.{part}" for part in known]
    cells = frame[~frame["fallback"] & frame[columns].notna().any(axis=1)]
    if cells.empty:
        raise NothingToDraw("only dense fallbacks")
    cells = cells[cells["seq_len"] == cells["seq_len"].max()]
    cells = cells.reindex(columns=["seq_len", "budget", "label", *columns, "tpot"])
    divisor, unit = fmt.scale(cells["tpot"], "s")
    labels = style.drawing_order(cells["label"])
    rows = {label: len(labels) - 1 - index for index, label in enumerate(labels)}
    axes_list = []
    for axes, part in _kernel.by_budget(cells, figure, height=0.24 * len(labels) + 0.75):
        axes_list.append(axes)
        y = part["label"].map(rows)
        left = part["tpot"].fillna(0.0) * 0.0
        for name, column in zip(known, columns, strict=True):
            colour, hatch = PARTS[name]
            size = part[column].fillna(0.0) / divisor
            look: dict[str, Any] = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.3, "hatch": hatch}
            axes.barh(y, size, 0.68, left=left, label=name, **look)
            left = left + size
        axes.plot(part["tpot"] / divisor, y, "D", color="black", markersize=3, label="plain step")
        axes.set_yticks(list(rows.values()), list(rows))
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlim(left=0)
        axes.set_xlabel(f"time ({unit})")
        axes.set_title(f"{axes.get_title()}, length {units.count(int(cells['seq_len'].iloc[0]))}")
    style.legend(figure, axes_list)
    drawn: pd.DataFrame = cells.rename(columns={name: f"{name}_seconds" for name in [*columns, "tpot"]})
    return drawn
