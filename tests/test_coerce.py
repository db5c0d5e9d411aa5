"""Text of the command line to the value of a parameter, alike for methods and tasks."""

from typing import Any, Literal

import pytest

from questbench._coerce import coerce


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("true", bool, True),
        ("False", bool, False),
        ("4", int, 4),
        ("4", float, 4.0),
        ("0.5", float, 0.5),
        ("name", str, "name"),
        ("eval", Literal["kernel", "eval"], "eval"),
        ("2", Literal[1, 2], 2),
        ("full", int | Literal["full"], "full"),
        ("64", int | Literal["full"], 64),
        ("64", int | None, 64),
        ("1,2", list[int], "1,2"),
    ],
)
def test_texts_become_values(text: str, hint: Any, value: Any) -> None:
    assert coerce(text, hint) == value and type(coerce(text, hint)) is type(value)


@pytest.mark.parametrize(
    ("text", "hint", "words"),
    [
        ("yes", bool, "takes true or false"),
        ("few", int, "takes a number"),
        ("4.5", int, "takes a number"),
        ("²", int, "takes a number"),
        ("-1", int, "must not be negative"),
        ("-0.5", float, "must not be negative"),
        ("other", Literal["kernel", "eval"], "takes kernel, eval"),
        ("some", int | Literal["full"], "takes a number"),
    ],
)
def test_other_texts_are_told_what_is_taken(text: str, hint: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        coerce(text, hint)
