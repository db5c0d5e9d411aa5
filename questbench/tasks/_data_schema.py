"""Columns that a table must have, checked row by row before anything is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from questbench.errors import PrerequisiteError
from questbench.tasks._data_table import Table, describe


@dataclass(frozen=True)
class Kind:
    """What a column may hold."""

    words: str
    """For messages: "must be ..."."""
    holds: Callable[[Any], bool]


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


TEXT = Kind("a text", lambda value: isinstance(value, str))
FULL_TEXT = Kind("a text that is not empty", lambda value: isinstance(value, str) and bool(value.strip()))
TEXTS = Kind("a list of one or more texts", lambda value: _texts(value) and len(value) > 0)
FULL_TEXTS = Kind(
    "a list of one or more texts, none of them empty",
    lambda value: _texts(value) and len(value) > 0 and all(text.strip() for text in value),
)
"""For references that are looked for in a completion: the empty text is in any."""
TEXT_OR_NULL = Kind("a text or null", lambda value: value is None or isinstance(value, str))
TEXTS_OR_NULL = Kind("a list of texts or null", lambda value: value is None or _texts(value))
NUMBER = Kind(
    "a finite number",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
)
OBJECT = Kind("an object", lambda value: isinstance(value, Mapping))
LIST = Kind("a list", lambda value: isinstance(value, list | tuple))


@dataclass(frozen=True)
class Schema:
    """One form in which the data is around."""

    name: str
    columns: Mapping[str, Kind]
    """Columns that must be there; others are ignored."""
    optional: Mapping[str, Kind] = field(default_factory=dict)
    """Columns that are read where they are there."""


def choose(table: Table, schemas: tuple[Schema, ...], label: str) -> Schema:
    """The schema whose columns the first row has.

    Raises:
        PrerequisiteError: none; the message names the columns that the closest one lacks.
    """
    first = table[0]
    lacking = [[column for column in schema.columns if column not in first] for schema in schemas]
    best = min(range(len(schemas)), key=lambda index: len(lacking[index]))
    if lacking[best]:
        raise PrerequisiteError(
            f"{table.where(0)} lacks {', '.join(map(repr, lacking[best]))}: {label} reads {schemas[best].name} "
            f"with the columns {', '.join(schemas[best].columns)}; this has {', '.join(map(str, first)) or 'none'}.",
            "Name the file of this task with --data.",
        )
    return schemas[best]


def check(table: Table, schemas: tuple[Schema, ...], label: str) -> Schema:
    """Check every row against the schema of the first.

    Returns:
        The schema.

    Raises:
        PrerequisiteError: naming file, line or row, and column.
    """
    schema = choose(table, schemas, label)
    for index in range(len(table)):
        row = table[index]
        for column, kind in schema.columns.items():
            if column not in row:
                raise PrerequisiteError(
                    f"{table.where(index)} lacks '{column}', which other rows have.", "Repair or replace the file."
                )
            held(row[column], kind, f"{table.where(index)}: '{column}'")
        for column, kind in schema.optional.items():
            if column in row:
                held(row[column], kind, f"{table.where(index)}: '{column}'")
    return schema


def held(value: Any, kind: Kind, what: str) -> Any:
    """``value``, if it is of its kind.

    Args:
        what: names it in the message: file, row and column.

    Raises:
        PrerequisiteError: it is not.
    """
    if not kind.holds(value):
        said = _said(value, listed=kind in (TEXTS, FULL_TEXTS, TEXTS_OR_NULL))
        raise PrerequisiteError(f"{what} is {said}, but must be {kind.words}.", "Repair or replace the file.")
    return value


def _said(value: Any, *, listed: bool) -> str:
    if isinstance(value, str) and not value.strip():
        return "an empty text"
    if isinstance(value, list | tuple) and not value:
        return "an empty list"
    if listed and isinstance(value, list | tuple):
        empty = [place for place, item in enumerate(value) if isinstance(item, str) and not item.strip()]
        odd = [place for place, item in enumerate(value) if not isinstance(item, str)]
        if odd:
            return f"a list whose item {odd[0]} is {describe(value[odd[0]])}"
        return f"a list whose item {empty[0]} is an empty text" if empty else describe(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}"
    return describe(value)
