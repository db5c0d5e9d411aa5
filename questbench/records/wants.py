"""What a field of a stored file must hold, and the check that every file passes before anything else reads it.

A file may have been edited, copied in part or made by another program. What is wrong with it is said in one sentence
that names the field; the reader adds the file and the line.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

DEEPEST = 12
"""Levels of lists and objects in one value; what questbench writes has five at most."""
LARGEST = 2**64
"""Whole numbers stay below it: counts of bytes and seeds do."""
_SUSPECT = re.compile(rb"[eE]\+?\d{3}|\d{300}")
"""Numbers that might be larger than a float; all others need no second look."""


HALVES = re.compile(rb"\\u[dD][89a-fA-F]")
"""Half of a character as JSON writes it, and whole ones that are written in halves."""


class Want(NamedTuple):
    """What one field must hold."""

    words: str
    """As an error says it: ``a text``."""
    holds: Callable[[Any], bool]


class FieldError(ValueError):
    """A field is missing, unknown or holds something else.

    Attributes:
        field: its name, those of the fields it stands in before it, with points between.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class SyntaxFault(ValueError):
    """A text that is no JSON.

    Attributes:
        line: the line of the text, from 1.
    """

    def __init__(self, error: json.JSONDecodeError) -> None:
        super().__init__(f"it is no JSON: {error.msg} at character {error.colno}")
        self.line = error.lineno


def parse(line: str | bytes) -> dict[str, Any]:
    """A line's JSON object, read strictly: no NaN, no infinity, no bottomless nesting.

    Raises:
        ValueError: it is not one.
    """
    data = line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line
    hooks: dict[str, Any] = {"parse_float": _finite} if _SUSPECT.search(data) else {}
    try:
        found = json.loads(data, parse_constant=_refuse_constant, **hooks)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise SyntaxFault(error) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text: byte {error.start + 1} is not UTF-8") from None
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    return found


def require(data: Mapping[str, Any], wants: Mapping[str, Want], where: str = "") -> None:
    """Check the fields of ``data`` that ``wants`` knows; others are only held to be plain.

    Args:
        where: the field that ``data`` stands in, with a point behind it.

    Raises:
        FieldError: a field holds something else; the message names it.
    """
    for name, value in data.items():
        want = wants.get(name, PLAIN)
        if not want.holds(value):
            message = f"field '{where}{name}' must be {want.words}, not {_shown(value)}"
            raise FieldError(where + name, message)


def visible(value: Any) -> Any:
    """The same value, with halves of characters written out (``\\udcff``): they stand for bytes that are no UTF-8.

    No table, figure or page can hold them otherwise.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {visible(key): visible(item) for key, item in value.items()}
    return [visible(item) for item in value] if isinstance(value, list) else value


def maybe(want: Want) -> Want:
    """The same, or nothing."""
    return Want(f"{want.words} or null", lambda value: value is None or want.holds(value))


def one_of(names: Collection[str]) -> Want:
    """One of a few words."""
    return Want(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def list_of(want: Want, words: str) -> Want:
    """A list whose items are alike."""
    return Want(words, lambda value: isinstance(value, list) and all(map(want.holds, value)))


def row_of(length: int) -> Want:
    """So many numbers."""
    return Want("", lambda row: isinstance(row, list) and len(row) == length and all(map(NUMBER.holds, row)))


def _plain(value: Any, deepest: int = DEEPEST) -> bool:
    if isinstance(value, (list, dict)):
        items = value.values() if isinstance(value, dict) else value
        return deepest > 0 and all(_plain(item, deepest - 1) for item in items)
    return not isinstance(value, int) or abs(value) <= LARGEST


def _number(value: Any) -> bool:
    return isinstance(value, float) or (_whole(value) and abs(value) <= LARGEST)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _time(value: Any) -> bool:
    try:
        datetime.datetime.fromisoformat(value)
    except (ValueError, TypeError):
        return False
    return True


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {_shown(text)} is too large")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _shown(value: Any) -> str:
    """The value as it stands in the file, shortened."""
    if isinstance(value, (list, dict)):
        kind = "list" if isinstance(value, list) else "object"
        return f"a {kind} of other values" if value else f"an empty {kind}"
    text = value if isinstance(value, str) else json.dumps(value)
    short = text if len(text) <= 40 else text[:37] + "..."
    return repr(short) if isinstance(value, str) else short


TEXT = Want("a text", lambda value: isinstance(value, str))
NUMBER = Want("a number", _number)
COUNT = Want("a whole number of 0 or more", lambda value: _whole(value) and 0 <= value <= LARGEST)
WHOLE = Want("a whole number", lambda value: _whole(value) and abs(value) <= LARGEST)
FLAG = Want("true or false", lambda value: isinstance(value, bool))
OBJECT = Want("an object", lambda value: isinstance(value, dict))
"""Its fields are looked at one by one."""
PLAIN_OBJECT = Want(f"an object of at most {DEEPEST} levels", lambda value: isinstance(value, dict) and _plain(value))
TIME = Want("a time such as 2026-01-31T12:00:00+00:00", _time)
PLAIN = Want(f"of at most {DEEPEST} levels, with whole numbers below 2^64", _plain)
TEXTS = list_of(TEXT, "a list of texts")
NUMBERS = list_of(maybe(NUMBER), "a list of numbers")
