"""What a plot is, and how it becomes PDF, PNG and CSV.

A plot is a module in this folder with::

    KIND = "kernel"                       the experiment whose cells it draws
    TITLE = "..."                         its caption
    AXES = ("seq_len", "budget")          inputs that it shows; where another one varies, each value gets a figure
    def draw(frame, figure) -> DataFrame  draws on the empty figure and returns exactly what is drawn;
                                          attrs[REMARK] of it is printed below the figure

``frame`` has one row per cell of one machine (columns: ``questbench.report.frame``). ``draw`` is a pure function of it
and raises :class:`NothingToDraw` rather than leave an empty figure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from questbench import registry
from questbench.records.writer import unwritable
from questbench.report import _format as fmt
from questbench.report import escape, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PACKAGE = "questbench.report.plots"
REMARK = "remark"
"""Key of ``DataFrame.attrs``: what a reader of this one figure must know besides; printed below it."""

LONGEST_NAME = 100
"""Characters of a figure's file name; names of models are part of it and may be paths."""


class NothingToDraw(Exception):
    """The records hold nothing that this plot shows; the message says what is missing."""


class Plot(Protocol):
    """A plot's module."""

    KIND: str
    TITLE: str
    AXES: tuple[str, ...]

    def draw(self, frame: pd.DataFrame, figure: Figure) -> pd.DataFrame:
        """Draw and return what was drawn."""
        ...


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One finished figure."""

    name: str
    caption: str
    png: Path
    pdf: Path
    csv: Path

    @property
    def paths(self) -> list[Path]:
        """All files of the figure."""
        return [self.pdf, self.png, self.csv]


def names() -> list[str]:
    """Registered plots."""
    return registry.names(PACKAGE)


def load(name: str) -> Plot:
    """A plot's module.

    Raises:
        UsageError: there is no such plot.
        PluginError: the module cannot be imported or lacks a part.
    """
    module = registry.load_module(PACKAGE, name, kind="plot")
    if lacking := [part for part in ("KIND", "TITLE", "AXES", "draw") if not hasattr(module, part)]:
        raise registry.broken("plot", name, f"{module.__file__} must define {', '.join(lacking)}")
    return cast(Plot, module)


def draw(name: str, frame: pd.DataFrame, inputs: Sequence[str], out: Path) -> Iterator[Drawn]:
    """Write every figure that plot ``name`` makes of the cells.

    Raises:
        NothingToDraw: not one figure came of it.
    """
    plot = load(name)
    cells = frame[(frame["kind"] == plot.KIND) & (frame["status"] == "ok")] if "kind" in frame else frame
    if cells.empty:
        raise NothingToDraw(f"no results of '{plot.KIND}'")
    reason = NothingToDraw("nothing")
    drawn: set[str] = set()
    for suffix, part in _setups(cells, [column for column in inputs if column not in plot.AXES]):
        file = _file_name(name + suffix, drawn)
        try:
            yield _write(plot, file, part, inputs, out)
            drawn.add(file)
        except NothingToDraw as error:
            reason = error
    if not drawn:
        raise reason


@contextlib.contextmanager
def blank() -> Iterator[Figure]:
    """An empty figure in the project's style, whatever the user's own matplotlib settings are."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as EmptyFigure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(mpl.rc_params_from_file(style.SHEET, use_default_template=False))
        yield EmptyFigure()


def _file_name(text: str, taken: set[str]) -> str:
    """A name that every file system takes; a hash tells apart what was too long or came out alike."""
    name = re.sub(r"[^A-Za-z0-9_.=-]+", "-", text)
    if len(name) <= LONGEST_NAME and name not in taken:
        return name
    return f"{name[:LONGEST_NAME].rstrip('-')}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:8]}"


def _write(plot: Plot, name: str, frame: pd.DataFrame, inputs: Sequence[str], out: Path) -> Drawn:
    frame = frame.reset_index(drop=True)
    if frame["run_mark"].nunique() > 1:
        frame["label"] = [f"{label} [{mark}]" for label, mark in zip(frame["label"], frame["run_mark"], strict=True)]
    for column in {"label", "task"} & set(frame):
        frame[column] = frame[column].map(lambda text: escape.terminal(text) if isinstance(text, str) else text)
    with blank() as figure:
        data = plot.draw(frame, figure)
        _, shared = fmt.split_inputs(frame, [column for column in inputs if column not in plot.AXES])
        lines = [f"{fmt.origin_line(frame)}. {fmt.shared_line(frame, shared)}.", fmt.runs_line(frame)]
        lines += [data.attrs.get(REMARK, ""), *(f"Warning: {text}" for text in fmt.frequent_warnings(frame))]
        style.small_print(figure, escape.terminal("\n".join(filter(None, lines))))
        _settle(figure)
        drawn = Drawn(name, plot.TITLE, *(out / f"{name}.{kind}" for kind in ("png", "pdf", "csv")))
        try:
            out.mkdir(parents=True, exist_ok=True)
            # Without dates and versions the same records give the same bytes.
            figure.savefig(drawn.pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})
            figure.savefig(drawn.png, dpi=style.DPI, metadata={"Software": None})
            data.to_csv(drawn.csv, index=False, lineterminator="\n")
        except OSError as error:
            raise unwritable(out, error) from None
    return drawn


def _settle(figure: Figure) -> None:
    """Lay the panels out once and keep them where they are, to a ten-thousandth of the figure.

    The solver of the layout adds in an order that changes from one call to the next, so that its last digits do, too.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(value, 4) for value in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))


def _setups(frame: pd.DataFrame, inputs: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Cells that differ only in what the plot shows, with a suffix for the file's name."""
    varying = [
        name for name in inputs if len({str(value) for value in fmt.column(frame, name) if value is not None}) > 1
    ]
    by = (["machine"] if frame["machine"].nunique() > 1 else []) + varying
    if not by:
        yield "", frame
        return
    keyed = frame.assign(**{name: frame[name].map(_hashable) for name in by})
    for values, part in keyed.groupby(by, sort=False, dropna=True):
        words = [f"{name}={fmt.inputs(name, value)}" for name, value in zip(by, values, strict=True)]
        yield "-" + "-".join(words), _with_baseline(frame, keyed, by, values, part.index)


def _with_baseline(
    frame: pd.DataFrame, keyed: pd.DataFrame, by: list[str], values: tuple[Any, ...], index: pd.Index[Any]
) -> pd.DataFrame:
    """Dense results do not depend on the page size: a set-up without any borrows those of its sibling."""
    part = frame.loc[index]
    if "page_size" not in by or part["baseline"].any():
        return part
    import pandas as pd

    siblings = keyed[keyed["baseline"]]
    for name, value in zip(by, values, strict=True):
        if name != "page_size":
            siblings = siblings[siblings[name] == value]
    return pd.concat([frame.loc[siblings.index], part])


def _hashable(value: Any) -> Any:
    return str(value) if isinstance(value, (list, dict)) else value
