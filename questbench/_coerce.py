"""From the text of a parameter, of a method or a task, to its value."""

from __future__ import annotations

import types
import typing
from typing import Any

from questbench import units


def coerce(text: str, hint: Any) -> Any:
    """The value of a field with this type; of a type that is not known here, the text itself.

    Raises:
        ValueError: it takes something else; the message says what, as in "takes a number".
    """
    options = _options(hint)
    if options == [hint] and hint not in (bool, int, float, str):
        return text
    for option in options:
        if option is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if option in (int, float) and (value := _number(text, option)) is not None:
            if value < 0:
                raise ValueError("must not be negative")
            return value
        if option is str or text == str(option):
            return text if option is str else option
    raise ValueError(f"takes {', '.join(dict.fromkeys(map(_named, options)))}")


def _options(hint: Any) -> list[Any]:
    """The alternatives of a type: types, and the values of literals."""
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(hint) if part is not type(None) for option in _options(part)]
    return [hint]


def _number(text: str, kind: type[int] | type[float]) -> float | None:
    if kind is int:
        return int(text) if units.is_whole(text.removeprefix("-")) else None
    try:
        return float(text)
    except ValueError:
        return None


def _named(option: Any) -> str:
    return {bool: "true or false", int: "a number", float: "a number"}.get(option, str(option))
