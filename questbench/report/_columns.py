"""A table of cells, said as its columns: the header of each, what it shows of a row, and whether it may be left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from questbench.report import _format as fmt
from questbench.report.render import NONE, Cell, Table

if TYPE_CHECKING:
    import pandas as pd

Shown = Callable[[Any], str]
"""What stands in a column of a row of the frame."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table."""

    header: str
    shown: Shown
    spare: int = 0
    """A narrow terminal leaves out the column with the lowest number first; never one with 0."""
    about: str = ""
    """What a reader must know of it."""
    words: bool = False


def number(name: str, divisor: float = 1.0) -> Shown:
    """A number of the row."""
    return lambda row: fmt.number(row.get(name), divisor)


def tokens(name: str) -> Shown:
    """A count of tokens."""
    return lambda row: fmt.tokens(row.get(name))


def sparse(shown: Shown) -> Shown:
    """What means nothing of a baseline."""
    return lambda row: NONE if row["baseline"] else shown(row)


def honest(shown: Shown) -> Shown:
    """What means nothing of a dense fallback."""
    return lambda row: NONE if row["fallback"] else shown(row)


def fallback(table: Table) -> str:
    """What stands in the place of a fallback's headline."""
    return f"{fmt.FALLBACK} {table.mark(fmt.FALLBACK_NOTE)}"


def bandwidth(table: Table, above_it: str) -> Shown:
    """Per cent of the measured bandwidth; what cannot be is marked by ``above_it``."""

    def shown(row: Any) -> str:
        above = fmt.surely_above(row, "bandwidth_fraction", 1)
        return fmt.number(row.get("bandwidth_fraction"), 0.01) + (f" {table.mark(above_it)}" if above else "")

    return shown


def begin(title: str, frame: pd.DataFrame, keys: Sequence[str], shared: Sequence[str], *more: str) -> Table:
    """A table without columns that says what its rows have in common: inputs, machine, runs, and ``more``."""
    setup = [fmt.shared_line(frame, shared), fmt.origin_line(frame), fmt.runs_line(frame), *more]
    return Table(title, [], setup=setup, warnings=fmt.list_warnings(frame, keys))


def fill(
    table: Table,
    rows: Iterable[Any],
    keys: Sequence[str],
    columns: Sequence[Column],
    label: Shown = lambda row: str(row["label"]),
) -> Table:
    """Give a table its columns and rows: the inputs ``keys``, the method as ``label`` names it, and ``columns``."""
    inputs = [Column(key.replace("_", " "), lambda row, key=key: fmt.inputs(key, row[key])) for key in keys]  # type: ignore[misc]
    every = [*inputs, Column("method", label, words=True), *columns]
    spare = sorted((column for column in every if column.spare), key=lambda column: column.spare)
    table.columns = [column.header for column in every]
    table.text_columns = frozenset(column.header for column in every if column.words)
    table.optional = tuple(column.header for column in spare)
    table.about = {column.header: column.about for column in every if column.about}
    table.keys = len(keys)
    table.rows = [[Cell(column.shown(row)) for column in every] for row in rows]
    return table


def rows_of(frame: pd.DataFrame) -> Iterable[Any]:
    """The rows of a frame."""
    return (row for _, row in frame.iterrows())
