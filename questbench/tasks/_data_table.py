"""Rows of jsonl, json, parquet and text files, plain or inside a zip file, with the line each row came from."""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from questbench import _paths
from questbench.errors import PrerequisiteError, first_line
from questbench.tasks._data_files import Place

_BLANKS = " \t\n\r"
_SURROGATE = re.compile("[\ud800-\udfff]")
AGAIN = "Download the file again, or name another one with --data."
Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Table:
    """Rows and where they came from. Rows of parquet files are read from disk when they are asked for."""

    rows: Sequence[Row]
    name: str
    """File, and member of a zip file."""
    sha256: str
    lines: Sequence[int] = ()
    """Line on which each row begins; empty where rows have no lines."""
    array: bool = False
    """Rows are elements of a JSON array: a line may hold several, or all."""
    files: Sequence[str] = ()
    """Name of the file that each row is, where every row is one."""
    kept: Sequence[int] | None = None
    """Rows that a selection keeps; all if ``None``."""

    def __len__(self) -> int:
        """Rows."""
        return len(self.rows) if self.kept is None else len(self.kept)

    def __getitem__(self, index: int) -> Row:
        """Row ``index``."""
        return self.rows[index if self.kept is None else self.kept[index]]

    def where(self, index: int) -> str:
        """How messages name a row: its line, or its number from 1, or both."""
        index = index if self.kept is None else self.kept[index]
        if self.files:
            return self.files[index]
        if not self.lines:
            return f"{self.name}, row {index + 1}"
        line = f"line {self.lines[index]}"
        return f"{self.name}, row {index + 1} ({line})" if self.array else f"{self.name}, {line}"

    def select(self, kept: Sequence[int]) -> Table:
        """The table of some of the rows."""
        return dataclasses.replace(self, kept=kept)


def read(place: Place) -> Table:
    """Read a table.

    Raises:
        PrerequisiteError: it is broken, not what its name says, or empty.
    """
    suffix = PurePosixPath(place.member).suffix if place.member else place.paths[0].suffix
    if suffix == ".parquet":
        if place.member:
            raise PrerequisiteError(f"{place.name}: parquet inside a zip file is not read.", "Unpack the zip file.")
        return _checked(Table(_parquet(place), place.name, place.sha256))
    rows: list[Row] = []
    lines: list[int] = []
    if suffix in (".txt", ".md"):
        for path in place.paths:
            rows.append({"text": _text(place, path), "title": PurePosixPath(place.member or path.name).stem})
        files = [place.name] if place.member else [path.name for path in place.paths]
        return _checked(Table(rows, place.name, place.sha256, files=files))
    array = False
    try:
        for path in place.paths:
            text = _text(place, path)
            if suffix == ".jsonl":
                _read_lines(text, place.name, rows, lines)
            else:
                array |= _read_json(text, place.name, rows, lines)
    except RecursionError as error:
        raise PrerequisiteError(f"{place.name} is nested too deeply to be data.", AGAIN) from error
    return _checked(Table(rows, place.name, place.sha256, lines, array))


def _checked(table: Table) -> Table:
    if len(table) == 0:
        raise PrerequisiteError(f"{table.name} is empty: it has no rows.", AGAIN)
    return table


def _text(place: Place, path: Path) -> str:
    """The text of a file or of the place's member of a zip file."""
    try:
        if place.member is None:
            raw = path.read_bytes()
        else:
            with zipfile.ZipFile(path) as archive:
                raw = archive.read(place.member)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise PrerequisiteError(f"{place.name} cannot be read: {error}.", AGAIN) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PrerequisiteError(
            f"{place.name}, line {line} is not UTF-8 (byte {error.start:,} of the file).", AGAIN
        ) from error


def _read_lines(text: str, name: str, rows: list[Row], lines: list[int]) -> None:
    """JSON lines. Only a line feed ends a line: JSON texts may hold other separators unescaped."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise PrerequisiteError(f"{name}, line {number} is not JSON: {error}.", AGAIN) from error
        rows.append(_object(row, f"{name}, line {number}"))
        lines.append(number)


def _read_json(text: str, name: str, rows: list[Row], lines: list[int]) -> bool:
    """A JSON array of rows, one object (a row of its own), or JSON lines under the name .json.

    Returns:
        Whether it is an array.
    """
    try:
        if text.lstrip(_BLANKS).startswith("["):
            _read_array(text, name, rows, lines)
            return True
        if text.strip():
            rows.append(_object(json.loads(text), f"{name}, row 1"))
            lines.append(1)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and not rows:  # a second value behind the first: lines
            _read_lines(text, name, rows, lines)
            return False
        raise PrerequisiteError(f"{name}, line {error.lineno} is not JSON: {error.msg}.", AGAIN) from error
    return False


def _read_array(text: str, name: str, rows: list[Row], lines: list[int]) -> None:
    """The elements one by one, so that the line on which each begins is known.

    Raises:
        json.JSONDecodeError: it is no array.
    """
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    place = _behind(text, text.index("[") + 1)
    more = text[place : place + 1] != "]"
    while more:
        line, counted = line + text.count("\n", counted, place), place
        row, place = decoder.raw_decode(text, place)
        rows.append(_object(row, f"{name}, row {len(rows) + 1} (line {line})"))
        lines.append(line)
        place = _behind(text, place)
        more = text[place : place + 1] == ","
        place = _behind(text, place + 1) if more else place
    if text[place : place + 1] != "]":
        raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
    if (rest := _behind(text, place + 1)) != len(text):
        raise json.JSONDecodeError("Text behind the array", text, rest)


def _behind(text: str, place: int) -> int:
    """The first place from ``place`` on that is not blank."""
    while place < len(text) and text[place] in _BLANKS:
        place += 1
    return place


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise PrerequisiteError(f"{where} is {describe(row)}, but must be an object with a field per column.", AGAIN)
    if (found := _lone_surrogate(row)) is not None:
        path, character = found
        raise PrerequisiteError(
            f"{where}: {path} holds \\u{ord(character):04x}, half of a pair of surrogates: it is no text.",
            "Repair or replace the file.",
        )
    return row


def _lone_surrogate(value: Any, path: str = "") -> tuple[str, str] | None:
    """Where a text holds what JSON can escape and no encoding can write, and which character it is."""
    if isinstance(value, str):
        match = _SURROGATE.search(value)
        return (path, match.group()) if match else None
    if isinstance(value, dict):
        # A field's own name is shown without its surrogates.
        parts = [(f"'{_SURROGATE.sub('?', key)}'", [key, item]) for key, item in value.items()]
        found = (_lone_surrogate(item, path or name) for name, items in parts for item in items)
    elif isinstance(value, list):
        found = (_lone_surrogate(item, path) for item in value)
    else:
        return None
    return next((one for one in found if one is not None), None)


def _parquet(place: Place) -> Sequence[Row]:
    """Rows of parquet files through ``datasets``, whose Arrow copy in our cache folder is read row by row."""
    import datasets

    # A folder per content: the copy of a file that has changed since would be taken for it.
    cache = _paths.cache_folder() / "datasets" / place.sha256[:16]
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrerequisiteError(
            f"Cannot write to the cache folder '{cache}': {error.strerror}.", "Set QUESTBENCH_CACHE to another folder."
        ) from error
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    heard = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what is wrong is said once, by us
    try:
        return datasets.Dataset.from_parquet([str(path) for path in place.paths], cache_dir=str(cache))  # type: ignore[no-any-return]
    except Exception as error:
        raise PrerequisiteError(f"{place.name} cannot be read as parquet: {_cause(error)}", AGAIN) from error
    finally:
        datasets.logging.set_verbosity(heard)
        if shown:
            datasets.enable_progress_bars()


def _cause(error: BaseException) -> str:
    """The first line of the innermost reason: ``datasets`` wraps what the reader says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def describe(value: Any) -> str:
    """A JSON value's kind in words, for messages."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
