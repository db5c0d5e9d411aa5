"""What all figures share: one colour, marker and dash per method whatever its place in the data, axes, labels.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; markers, dashes and hatches say the same again.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from questbench import units
from questbench.report.frame import DENSE, is_baseline

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SHEET = Path(__file__).with_name("questbench.mplstyle")
COLUMN, PAGE = 3.3, 6.8
"""Widths in inches: one column of a paper, and its page."""
DPI = 300
"""Of the PNG files."""
LONG = 20
"""Characters from which on a label is broken into lines, or moved from the end of its line to the legend."""
NEAR = 10
"""Per cent up to which a far-reaching axis is linear."""
_CHARACTER = 0.052
"""Inches that a character of a label takes."""


@dataclasses.dataclass(frozen=True)
class Look:
    """How one method is drawn, in every figure."""

    colour: str
    marker: str
    dash: Any
    hatch: str = ""
    hollow: bool = False

    def line(self) -> dict[str, Any]:
        """Arguments of ``Axes.plot`` and ``Axes.errorbar``."""
        face = "white" if self.hollow else self.colour
        return {"color": self.colour, "marker": self.marker, "linestyle": self.dash, "markerfacecolor": face}

    def bar(self) -> dict[str, Any]:
        """Arguments of ``Axes.bar``."""
        face = "white" if self.hollow else self.colour
        return {"facecolor": face, "edgecolor": self.colour if self.hollow else "white", "hatch": self.hatch}


_FIXED = {
    "dense": Look("#000000", "o", "-"),
    "torch": Look("#7F7F7F", "x", (0, (1, 1)), "xxx"),
    "flashinfer": Look("#3F3F3F", "d", (0, (3, 1)), "+++"),
    "quest": Look("#D55E00", "s", "-"),
    "h2o": Look("#0072B2", "^", "--", "///"),
    "tova": Look("#009E73", "D", "-.", "\\\\\\"),
    "streaming_llm": Look("#CC79A7", "v", ":", "..."),
}
_SPARE = (
    Look("#E69F00", "P", (0, (3, 1, 1, 1)), "++"),
    Look("#56B4E9", "X", (0, (5, 1)), "oo"),
    Look("#8C6D31", "<", (0, (1, 2)), "**"),
    Look("#5B5B9E", ">", (0, (4, 2, 1, 2)), "--"),
)
_YARDSTICKS = (Look("#6F6F6F", "*", (0, (1, 1)), hollow=True), Look("#A0A0A0", "+", (0, (1, 3)), hollow=True))
USUAL_LINES = 3
"""Of small print below a figure."""
STAGES = {
    "append": ("#999999", ""),
    "score": ("#E69F00", "///"),
    "select": ("#56B4E9", "..."),
    "attend": ("#0072B2", ""),
    "evict": ("#CC79A7", "\\\\\\"),
}
"""Colour and hatch of each stage of a step, in the order in which they run."""
REST = {"rest": ("#444444", "")}
"""Of what stands between and around the stages."""
LIMIT: dict[str, Any] = {"linestyle": "-", "linewidth": 0.7, "alpha": 0.45}
"""Lines of what no measurement can beat: paler than every method, and without markers."""


def looks(labels: Iterable[str], yardsticks: Iterable[str] = ()) -> dict[str, Look]:
    """The look of every label. A label is a method's name, perhaps with arguments behind it.

    Unknown methods take the spare looks in sorted order; variants of one method share its colour and are hollow.
    """
    labels, marked = list(dict.fromkeys(labels)), set(yardsticks)
    names = {label: label.split(" ")[0] for label in labels}
    unknown = sorted({name for label, name in names.items() if name not in _FIXED and label not in marked})
    known = {**_FIXED, **{name: _SPARE[index % len(_SPARE)] for index, name in enumerate(unknown)}}
    known |= {
        name: _YARDSTICKS[i % len(_YARDSTICKS)] for i, name in enumerate(sorted({names[label] for label in marked}))
    }
    found: dict[str, Look] = {}
    variants: dict[str, int] = {}
    for label in labels:
        number = variants.get(names[label], 0)
        variants[names[label]] = number + 1
        look = known[names[label]]
        if number:
            dashes = [dash for dash in ("--", ":", "-.", "-") if dash != look.dash]
            dash = dashes[(number - 1) % len(dashes)]
            look = dataclasses.replace(look, hollow=True, dash=dash, hatch=("////", "....", "xxxx")[(number - 1) % 3])
        found[label] = look
    return found


def drawing_order(labels: Iterable[str]) -> list[str]:
    """Dense at the bottom, other baselines above it, quest on top: what is drawn last is never hidden."""
    rank = {DENSE: 0, "quest": 3}

    def place(label: str) -> int:
        name = label.split(" ")[0]
        return rank.get(name, 1 if is_baseline(name) else 2)

    return sorted(dict.fromkeys(labels), key=place)


def broken(label: str) -> str:
    """A label for the side of a bar: long ones in lines."""
    import textwrap

    return "\n".join(textwrap.wrap(label, LONG + 4, break_long_words=False)) if len(label) > LONG else label


def in_lines(text: str, room: int) -> str:
    """A label in lines of at most ``room`` characters, broken behind words and the signs between them."""
    lines = [""]
    for piece in re.findall(rf"[^_=, ]{{1,{room}}}[_=, ]*|[_=, ]+", text):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > room:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.strip() for line in lines)


def spread(value: pd.Series[float], low: pd.Series[float], high: pd.Series[float]) -> list[pd.Series[float]]:
    """Error bars around ``value``, downwards and upwards; none where an end is missing."""
    return [(value - low.fillna(value)).clip(lower=0), (high.fillna(value) - value).clip(lower=0)]


def leftmost(axes: Axes) -> bool:
    """Whether the panel stands in the first column, where the name of the y axis belongs."""
    return bool(axes.get_subplotspec().is_first_col())  # type: ignore[union-attr]


def count_axis(axes: Axes, values: Iterable[float], label: str) -> None:
    """A logarithmic x axis of token counts with a tick, such as ``8k``, at every power of two that is needed."""
    present = sorted(values)
    axes.set_xscale("log", base=2)
    first, last = math.ceil(math.log2(present[0])), math.floor(math.log2(present[-1]))
    if last <= first:  # no two powers of two in between: those around
        first, last = math.floor(math.log2(present[0])), math.ceil(math.log2(present[-1]))
    step = max(1, math.ceil((last - first + 1) / 7))
    ticks = [2**power for power in range(first, last + 1, step)]
    whole = [int(value) for value in present if float(value).is_integer()]
    if len(whole) == len(present) <= 7:
        ticks = whole  # few measured points: their own values are the best ticks
    axes.set_xticks(ticks, [units.count(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    low, high = (math.log2(function(*ticks, *present)) for function in (min, max))
    margin = max(0.06 * (high - low), 0.3)
    axes.set_xlim(2 ** (low - margin), 2 ** (high + margin))
    axes.set_xlabel(label)


def far_axis(axes: Axes, least: float, largest: float) -> None:
    """A y axis of per cent that is logarithmic beyond :data:`NEAR`, above and below, and holds two values."""
    axes.set_yscale("symlog", linthresh=NEAR)
    ends = [value + math.copysign(max(NEAR / 2, abs(value)), side) for value, side in ((least, -1), (largest, 1))]
    axes.set_ylim(*ends)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def panels(figure: Figure, count: int, *, height: float = 2.0, columns: int = 3, share_y: bool = True) -> list[Axes]:
    """``count`` axes in rows of ``columns``; one alone gets a paper's column, more get the page."""
    across = 2 if count == 4 else min(count, columns)
    down = -(-count // across)
    figure.set_size_inches(COLUMN * 1.15 if count == 1 else PAGE, height * down + 0.5)
    grid = figure.subplots(down, across, squeeze=False, sharey=share_y)
    flat = [axes for row in grid for axes in row]
    for axes in flat[count:]:
        axes.set_visible(False)
    return flat[:count]


def legend(figure: Figure, axes: Sequence[Axes], leave_out: Iterable[str] = ()) -> None:
    """One legend above all panels, every label once: bars and methods first, plain lines and marks behind them."""
    from matplotlib.lines import Line2D

    handles: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = [label for label in handles if label not in set(leave_out)]
    labels.sort(key=lambda label: isinstance(handles[label], Line2D))
    column = _CHARACTER * max(map(len, labels)) + 0.42  # inches, with the handle and the gap
    fitting = max(1, int(figure.get_size_inches()[0] / column))
    rows = -(-len(labels) // fitting)
    across = -(-len(labels) // rows)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.16 * (rows - 1))  # the panels keep their height
    figure.legend([handles[label] for label in labels], labels, loc="outside upper center", ncols=across)


def name_lines(figure: Figure, axes: Sequence[Axes], ends: dict[str, tuple[float, str]]) -> None:
    """Names at the ends of the lines of a single panel while they are short; a legend for whatever has none there.

    Args:
        axes: all panels, with their final scales and limits.
        ends: label -> (y of the line's last point, colour), of the single panel.
    """
    direct = len(axes) == 1 and max(map(len, ends)) <= LONG
    if direct:
        direct_labels(axes[0], ends)
    labels = {label for one in axes for label in one.get_legend_handles_labels()[1]}
    if not direct or labels - set(ends):
        legend(figure, axes, leave_out=ends if direct else ())


def direct_labels(axes: Axes, ends: dict[str, tuple[float, str]]) -> None:
    """Names at the right end of their lines, moved apart where they would overlap.

    Args:
        axes: with its final scale and limits.
        ends: label -> (y of the line's last point, colour).
    """
    least = 8.5 / 72 / (axes.get_figure(root=True).get_size_inches()[1] * 0.62)  # type: ignore[union-attr]
    to_axes = axes.transData + axes.transAxes.inverted()
    place = {label: to_axes.transform((1, y))[1] for label, (y, _) in ends.items()}
    order = sorted(place, key=lambda label: place[label])
    at = [min(max(float(place[label]), 0.0), 1.0) for label in order]
    for index in range(1, len(at)):
        at[index] = max(at[index], at[index - 1] + least)
    over = max(0.0, at[-1] - 1.0) if at else 0.0
    at = [value - over for value in at]
    for index in range(len(at) - 2, -1, -1):
        at[index] = min(at[index], at[index + 1] - least)
    for label, y in zip(order, at, strict=True):
        axes.annotate(label, (1.02, y), xycoords="axes fraction", color=ends[label][1], va="center", fontsize=7.5)


def small_print(figure: Figure, text: str) -> None:
    """Machine, data type and commit below everything; lines are broken to fit."""
    import textwrap

    width = int(figure.get_size_inches()[0] * 28)
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, width)]
    # The figure's height counts on this many; more of them make it higher, and the panels keep their height.
    across, height = figure.get_size_inches()
    figure.set_size_inches(across, height + 0.09 * max(len(lines) - USUAL_LINES, 0))
    room = (0.09 * len(lines) + 0.04) / figure.get_size_inches()[1]
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, room, 1, 1 - room))  # type: ignore[call-arg]
    figure.text(
        0.01,
        0.02 / figure.get_size_inches()[1],
        "\n".join(lines),
        fontsize=5.5,
        color="0.35",
        va="bottom",
        linespacing=1.15,
    )


def plain_log_axis(axes: Axes) -> None:
    """A logarithmic y axis with numbers rather than powers (1, 2, 5, 10): as many as fit, seven at most."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = axes.get_ylim()
    if high < 1.5 * low:  # hardly any difference: do not blow it up
        low, high = low / 1.25, high * 1.25
        axes.set_ylim(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _STEPS:
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) <= 7:
            break
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    plain_ticks(axes.yaxis)


def plain_ticks(axis: Axis) -> None:
    """Numbers as the tables write them: 100,000 and 0.5."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"))


_STEPS = ((1.0, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 8), (1.0, 1.5, 2, 3, 4, 6, 8), (1.0, 2, 5), (1.0, 3), (1.0,))
"""Where a logarithmic axis may have its ticks within a power of ten, the finest first."""
