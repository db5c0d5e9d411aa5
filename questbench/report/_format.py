"""How numbers and set-ups are written in tables and small print."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from questbench import units
from questbench.records import limits
from questbench.report.frame import DENSE
from questbench.report.render import NONE, Table

if TYPE_CHECKING:
    import pandas as pd

FALLBACK = "DENSE-FALLBACK"
FALLBACK_NOTE = (
    "DENSE-FALLBACK: a sparse layer attended every entry although the text was longer than the budget. "
    "This is dense attention, not a result of the method."
)
COUNTS = ("seq_len", "budget", "tokens", "length")
"""Inputs that are token counts and are shown as ``32k``."""
_SCALES: dict[str, list[tuple[float, str]]] = {
    "s": [(1.0, "s"), (1e-3, "ms"), (1e-6, "us")],
    "B": [(float(1 << shift), name) for shift, name in ((30, "GiB"), (20, "MiB"), (10, "KiB"), (0, "B"))],
}


def missing(value: Any) -> bool:
    """Whether there is no number: ``None`` or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def scale(values: Iterable[Any], unit: str) -> tuple[float, str]:
    """Divisor and name of the unit in which the middle value has one to three digits before the point."""
    if unit == "fraction":
        return 0.01, "%"
    known = sorted(abs(value) for value in values if not missing(value) and value != 0)
    steps = _SCALES.get(unit)
    if steps is None or not known:
        return 1.0, unit
    middle = known[len(known) // 2]
    return next(((size, name) for size, name in steps if middle >= size), steps[-1])


def number(value: Any, divisor: float = 1.0) -> str:
    """Three significant figures, or a dash."""
    return NONE if missing(value) else units.significant(value / divisor)


def ends(row: Any, column: str) -> tuple[float, float]:
    """Between which two numbers a median of a row lies; see :mod:`questbench.records.limits`."""
    names = ("ci_low", "ci_high", "min", "max", "p20", "p80")
    return limits.ends(row[column], {name: row.get(f"{column}.{name}") for name in names})


def surely_above(row: Any, column: str, limit: Any) -> bool:
    """Whether a row's number is above what is possible, its interval considered."""
    return not missing(row.get(column)) and not missing(limit) and ends(row, column)[0] > limit


def tokens(value: Any) -> str:
    """A token count; means over steps and samples keep three figures."""
    return NONE if missing(value) else f"{value:,.0f}" if float(value).is_integer() else units.significant(value)


def spread(value: Any, low: Any, high: Any, divisor: float = 1.0) -> str:
    """``median [p20-p80]``; the bracket is left out where there is none."""
    if missing(value) or missing(low) or missing(high):
        return number(value, divisor)
    to = "–" if low >= 0 else ", "  # a dash after a minus sign cannot be read
    return f"{number(value, divisor)} [{number(low, divisor)}{to}{number(high, divisor)}]"


def inputs(name: str, value: Any) -> str:
    """An input as a person writes it: counts with ``k``, whole numbers without a point."""
    if isinstance(value, (list, tuple)):
        return ",".join(inputs(name, item) for item in value)
    if missing(value):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)) and float(value).is_integer():
        whole = int(value)
        return (units.count(whole) if whole > 0 else NONE) if name in COUNTS else str(whole)
    return str(value)


def column(frame: pd.DataFrame, name: str) -> list[Any]:
    """Values of a column, ``None`` for every row if there is no such column."""
    return [None if missing(value) else value for value in frame[name]] if name in frame else [None] * len(frame)


def rivals(frame: pd.DataFrame, *, apart: bool = False) -> list[str]:
    """Libraries that something was compared with: in the rounds of the methods, or ``apart`` from them."""
    named = [ratio for ratio in map(str, frame) if ratio.startswith("speedup.") and ratio.count(".") == 1]
    found = {ratio.partition(".")[2]: False in column(frame, f"{ratio}.paired") for ratio in named}
    return [name for name, alone in found.items() if name != DENSE and alone == apart]


def split_inputs(frame: pd.DataFrame, names: Sequence[str], always: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Inputs that tell rows apart (``always`` first) and inputs that all rows share."""
    varying = [name for name in always if name in names]
    shared: list[str] = []
    for name in names:
        if name in always:
            continue
        # A cell that lacks an input (a baseline without pages) does not make it vary.
        different = {str(value) for value in column(frame, name) if value is not None}
        (varying if len(different) > 1 else shared).append(name)
    if "run_mark" in frame and frame["run_mark"].nunique() > 1:
        varying.insert(len([name for name in always if name in names]), "run_mark")
    return varying, shared


def ranks(frame: pd.DataFrame) -> pd.Series[int]:
    """The place of each row's method: dense, other baselines, and the methods, as they came."""
    methods = [DENSE, *frame.loc[frame["baseline"], "method"], *frame["method"]]
    return frame["method"].map({method: number for number, method in enumerate(dict.fromkeys(methods))})


def in_blocks(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Rows sorted by their inputs; within equal inputs by :func:`ranks`."""
    ranked = frame.assign(_rank=ranks(frame))
    return ranked.sort_values([*(key for key in keys if key in frame), "_rank"], kind="stable").reset_index(drop=True)


def shared_line(frame: pd.DataFrame, names: Sequence[str]) -> str:
    """``Shape llama-3.1-8b, heads 32, dtype bf16``."""
    known = {name: next((value for value in column(frame, name) if value is not None), None) for name in names}
    text = ", ".join(
        f"{name.replace('_', ' ')} {inputs(name, value)}" for name, value in known.items() if value not in (None, "")
    )
    return text[:1].upper() + text[1:]


def origin_line(frame: pd.DataFrame) -> str:
    """Machine, backends and commits of the rows."""
    backends = sorted({str(value) for value in frame["backend"]})
    commits = sorted({str(value) for value in frame["commit"]})
    machines = sorted({str(value) for value in frame["machine"]})
    return f"{'; '.join(machines)}. Backend {', '.join(backends)}; commit {', '.join(commits)}"


def runs_line(frame: pd.DataFrame) -> str:
    """Which run each mark stands for, with the commit and the load that may explain a difference."""
    if "run_mark" not in frame or frame["run_mark"].nunique() < 2:
        return ""
    known: dict[str, str] = {}
    for marks in frame["about_runs"]:
        known |= marks
    return "Runs: " + "; ".join(f"{mark} = {known[mark]}" for mark in sorted(known, key=lambda mark: (len(mark), mark)))


def counts_line(frame: pd.DataFrame) -> str:
    """``32k = 32,768 tokens; ...`` for every length and budget of the rows."""
    values = {int(value) for name in ("seq_len", "budget") for value in column(frame, name) if value}
    return "; ".join(units.echo_count(value) for value in sorted(values) if value >= 1024)


def gap(table: Table, row: Any) -> str:
    """A dash with a footnote that says why there is no value."""
    return f"{NONE} {table.mark(row['reason'])}" if row["reason"] else NONE


def list_warnings(frame: pd.DataFrame, keys: Sequence[str], limit: int = 8) -> list[str]:
    """Each kind of warning once, with the cells it is about; warnings that differ in numbers only are one kind."""
    kinds: dict[str, dict[str, str]] = {}
    for _, row in frame.iterrows():
        # The first inputs find the cell; a list of all of them would be longer than the warning.
        name = " ".join([str(row["label"]), *(inputs(key, row[key]) for key in keys[:3] if not missing(row[key]))])
        for text in row["warnings"]:
            kinds.setdefault(_NUMBER.sub("#", text), {}).setdefault(name, text)
    lines = run_warnings(frame)
    for _, cells in sorted(kinds.items(), key=lambda item: not item[0].startswith(_RUN_WIDE)):
        first, *others = cells
        alike = len(set(cells.values())) == 1
        more = f" and {len(others) - 2} more" if len(others) > 2 else ""
        also = f"{', ' if alike else '; likewise '}{', '.join(others[:2])}{more}" if others else ""
        named = "all cells" if alike and len(cells) == len(frame) > 1 else f"{first}{also}"
        lines.append(f"{cells[first].rstrip('.')} ({named})")
    hidden = len(lines) - limit
    return lines[:limit] + ([f"{hidden} more kinds of warning are in the records"] if hidden > 0 else [])


def run_warnings(frame: pd.DataFrame) -> list[str]:
    """What must be known of whole runs: those that did not end well."""
    found: dict[str, None] = {}
    for states in frame.get("run_states", ()):
        found |= dict.fromkeys(states)
    return list(found)


def frequent_warnings(frame: pd.DataFrame) -> list[str]:
    """For the small print of a figure: whole runs first, then the kinds of warning that half of its cells have."""
    kinds: dict[str, list[str]] = {}
    for texts in frame["warnings"]:
        for text in texts:
            kinds.setdefault(_NUMBER.sub("#", text), []).append(text)
    often = [
        f"{texts[0].rstrip('.')} ({'all' if len(texts) == len(frame) else len(texts)} of {len(frame)} cells)".replace(
            f"(all of {len(frame)} cells)", "(all cells)"
        )
        for kind, texts in sorted(kinds.items(), key=lambda item: -len(item[1]))
        if 2 * len(texts) >= len(frame) or kind.startswith(_RUN_WIDE)
    ]
    return run_warnings(frame) + often[:3]


_RUN_WIDE = ("This machine was busy", "Other programs", "The read bandwidth")
"""How warnings begin that are about the machine: they come first, and stand in figures however few cells carry them."""
_NUMBER = re.compile(r"[-+]?\d[\d.,]*(?: (?:s|ms|us|ns)\b)?")
"""A number with its unit of time, which may differ between two warnings of one kind."""
