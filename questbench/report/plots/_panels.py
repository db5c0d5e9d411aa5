"""What the plots of times share: a panel per budget with lines over the length, or with stacked bars of parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from questbench import units
from questbench.report import _format as fmt
from questbench.report import style
from questbench.report.plots._base import REMARK, NothingToDraw

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

APART = 1.15
"""Time of a whole over that of its parts from which on the figure says that the two disagree."""
LIMIT = "bound by bytes"
"""Legend of the lines that say what the bytes alone would take."""


def honest(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Cells with a value in ``column`` that are no dense fallback.

    Raises:
        NothingToDraw: there are none.
    """
    if column not in frame or frame[column].isna().all():
        raise NothingToDraw(f"no {column.replace('.', ' ')} in the records")
    kept = frame[~frame["fallback"] & frame[column].notna()]
    if kept.empty:
        raise NothingToDraw("only dense fallbacks")
    return kept


def by_budget(frame: pd.DataFrame, figure: Figure, **panels: Any) -> Iterator[tuple[Axes, pd.DataFrame]]:
    """A panel for every budget.

    Raises:
        NothingToDraw: no cell has one.
    """
    budgets = sorted(frame["budget"].dropna().unique()) if "budget" in frame else []
    if not budgets:
        raise NothingToDraw("no budget in the records")
    for axes, budget in zip(style.panels(figure, len(budgets), **panels), budgets, strict=True):
        axes.set_title(f"budget {units.count(int(budget))}")
        yield axes, frame[frame["budget"] == budget]


def over_length(
    frame: pd.DataFrame, figure: Figure, metric: str, *, name: str, verb: str, bound: str | None = None
) -> pd.DataFrame:
    """A time over the length of the text: a line per method, medians with p20 to p80.

    Args:
        metric: column of the time, in seconds.
        name: what the y axis calls it, without its unit.
        verb: the command that measures more lengths.
        bound: column of the time that the bytes alone would take; drawn pale below its method.

    Raises:
        NothingToDraw: no times, or of one length only.
    """
    cells = honest(frame, metric)
    if cells["seq_len"].nunique() < 2:
        raise NothingToDraw(f"needs two or more lengths: questbench {verb} --seq-len 8k,16k,32k")
    divisor, unit = fmt.scale(cells[metric], "s")
    keys = ["budget", "label", "seq_len"]
    times = [metric, f"{metric}.p20", f"{metric}.p80", *([bound] if bound else [])]
    cells = cells.reindex(columns=[*keys, *times]).sort_values(keys, kind="stable")
    looks = style.looks(cells["label"])
    axes_list = []
    for axes, part in by_budget(cells, figure):
        axes_list.append(axes)
        ends = {}
        for label in style.drawing_order(part["label"]):
            line = part[part["label"] == label]
            value = line[metric] / divisor
            spread = style.spread(value, *(line[f"{metric}.{end}"] / divisor for end in ("p20", "p80")))
            axes.errorbar(line["seq_len"], value, yerr=spread, label=label, **looks[label].line())
            if bound:
                axes.plot(line["seq_len"], line[bound] / divisor, color=looks[label].colour, **style.LIMIT)
            ends[label] = (float(value.iloc[-1]), looks[label].colour)
        axes.set_yscale("log")
        style.count_axis(axes, cells["seq_len"].unique(), "text length (tokens)")
        if style.leftmost(axes):
            axes.set_ylabel(f"{name} ({unit})")
    for axes in axes_list:
        style.plain_log_axis(axes)
    if bound:
        axes_list[0].plot([], [], color="black", label=LIMIT, **style.LIMIT)
    style.name_lines(figure, axes_list, ends)
    return cells.rename(columns={column: f"{column}_seconds" for column in times})


def stacked(
    frame: pd.DataFrame, figure: Figure, metric: str, parts: Mapping[str, tuple[str, str]], *, whole: str
) -> pd.DataFrame:
    """Bars of the parts of a time at the longest text: a bar per method, and a diamond for the time of the whole.

    Args:
        metric: column of the whole, in seconds; a part is a column of that name and its own behind a dot.
        parts: colour and hatch of every part, in the order in which they run.
        whole: what the legend calls the diamond.

    Raises:
        NothingToDraw: no parts in the records.
    """
    known = [part for part in parts if f"{metric}.{part}" in frame]
    if not known:
        raise NothingToDraw("no parts of a step in the records")
    columns = [f"{metric}.{part}" for part in known]
    cells = frame[~frame["fallback"] & frame[columns].notna().any(axis=1)]
    if cells.empty:
        raise NothingToDraw("only dense fallbacks")
    length = cells["seq_len"].max()
    shorter = _not_of(cells, length)
    cells = cells[cells["seq_len"] == length].reindex(columns=["seq_len", "budget", "label", *columns, metric])
    divisor, unit = fmt.scale(cells[metric], "s")
    limit = _limit(cells[columns].sum(axis=1).combine(cells[metric].fillna(0.0), max), frame["baseline"]) / divisor
    labels = style.drawing_order(cells["label"])
    rows = {label: len(labels) - 1 - index for index, label in enumerate(labels)}
    names = {label: style.broken(label) for label in labels}
    lines = max(name.count("\n") + 1 for name in names.values())
    axes_list = []
    for axes, part in by_budget(cells, figure, height=(0.13 * lines + 0.11) * len(labels) + 0.75):
        axes_list.append(axes)
        y = part["label"].map(rows)
        left = part[metric].fillna(0.0) * 0.0
        for name, column in zip(known, columns, strict=True):
            colour, hatch = parts[name]
            size = part[column].fillna(0.0) / divisor
            look: dict[str, Any] = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.3, "hatch": hatch}
            axes.barh(y, size, 0.68, left=left, label=name, **look)
            left = left + size
        axes.plot(part[metric] / divisor, y, "D", color="black", markersize=3, label=whole)
        for at, size, mark in zip(y, left, part[metric] / divisor, strict=True):
            if size > limit:  # written out, since the bar does not end within the panel
                end = mark - 0.03 * limit if 0.6 * limit < mark < limit else 0.97 * limit
                text = f"{units.significant(size)} {unit} »"
                axes.annotate(text, (end, at), ha="right", va="center", color="white", fontsize=7)
        axes.set_yticks(list(rows.values()), [names[label] for label in rows])
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, limit)
        style.plain_ticks(axes.xaxis)
        axes.set_xlabel(f"time ({unit})")
        axes.set_title(f"{axes.get_title()}, length {units.count(int(length))}")
    style.legend(figure, axes_list)
    remark = " ".join(filter(None, [shorter, _apart(cells, columns, metric, whole)]))
    drawn: pd.DataFrame = cells.rename(columns={column: f"{column}_seconds" for column in [*columns, metric]})
    if remark:
        drawn.attrs[REMARK] = remark
    return drawn


def _not_of(cells: pd.DataFrame, length: float) -> str:
    """What has no cell at the longest text, and is therefore not drawn."""
    found = []
    there = cells[cells["seq_len"] == length]
    for column, name in (("run_mark", "run"), ("budget", "budget")):
        absent = sorted(set(cells[column].dropna()) - set(there[column])) if column in cells else []
        found += [f"{name} {fmt.inputs(column, value)}" for value in absent]
    return f"Not drawn, having no text of {units.count(int(length))}: {', '.join(found)}." if found else ""


def _apart(cells: pd.DataFrame, columns: list[str], metric: str, whole: str) -> str:
    """What a reader must know where diamonds stand beyond their bars, or far within them."""
    share = cells[metric] / cells[columns].sum(axis=1)
    beyond, within = cells[share > APART], cells[share < 1 / APART]
    lines = []
    if len(beyond):
        names = ", ".join(dict.fromkeys(beyond["label"]))
        lines.append(
            f"Diamonds beyond their bars ({names}): the {whole} took up to {share.max():.1f} times as long as its "
            "parts together. The two were timed apart: the machine may have been slower during one of them, and the "
            "parts were timed with no other method between two steps."
        )
    if len(within):
        names = ", ".join(dict.fromkeys(within["label"]))
        lines.append(
            f"Diamonds within their bars ({names}): the parts together took up to {1 / share.min():.1f} times as long "
            f"as the {whole}. For the parts, every op is called alone."
        )
    return " ".join(lines)


def _limit(total: pd.Series[float], baseline: pd.Series[bool]) -> float:
    """End of the time axis: the longest sparse step; bars of baselines may leave the panel if they dwarf it."""
    sparse = total[~baseline[total.index]]
    longest, most = float(total.max()), 2.0 * float(sparse.max()) if len(sparse) else math.inf
    return (most if longest > 1.5 * most else longest) * 1.05
