"""Time per token of the whole model over the length of the text, beside what its bytes take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from questbench.report import _format as fmt
from questbench.report import style
from questbench.report.plots import _kernel
from questbench.report.plots._base import NothingToDraw

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KIND = "e2e"
TITLE = (
    "Time per token of the whole model: median over text length, bars span the 20th to the 80th percentile. Dotted: "
    "what weights and KV entries take at the measured read bandwidth."
)
AXES = ("seq_len", "budget")


def draw(frame: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """A line per method, a panel per budget."""
    cells = _kernel.honest(frame, "tpot")
    if cells["seq_len"].nunique() < 2:
        raise NothingToDraw("needs two or more lengths: questbench e2e --seq-len 8k,16k,32k")
    divisor, unit = fmt.scale(cells["tpot"], "s")
    columns = ["budget", "label", "seq_len", "tpot", "tpot.p20", "tpot.p80", "bound"]
    cells = cells.reindex(columns=columns).sort_values(columns[:3], kind="stable")
    looks = style.looks(cells["label"])
    axes_list = []
    for axes, part in _kernel.by_budget(cells, figure):
        axes_list.append(axes)
        ends = {}
        for label in style.drawing_order(part["label"]):
            line = part[part["label"] == label]
            value = line["tpot"] / divisor
            low, high = (line[name].fillna(line["tpot"]) / divisor for name in ("tpot.p20", "tpot.p80"))
            spread = [(value - low).clip(lower=0), (high - value).clip(lower=0)]
            axes.errorbar(line["seq_len"], value, yerr=spread, label=label, **looks[label].line())
            axes.plot(line["seq_len"], line["bound"] / divisor, ":", color=looks[label].colour, linewidth=0.8)
            ends[label] = (float(value.iloc[-1]), looks[label].colour)
        axes.set_yscale("log")
        style.count_axis(axes, part["seq_len"].unique(), "text length (tokens)")
    for axes in axes_list:
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel(f"time per token ({unit})")
        style.plain_log_axis(axes)
    if len(axes_list) == 1:
        style.direct_labels(axes_list[0], ends)
    else:
        style.legend(figure, axes_list)
    return cells.rename(columns={name: f"{name}_seconds" for name in columns[3:]})
