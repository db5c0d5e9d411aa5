"""A field that is itself a list keeps its commas; all others sweep."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from questbench.methods import _make
from questbench.methods.dense import Dense


@dataclass(frozen=True)
class Listed(Dense):
    """A method with a list for a field."""

    layers: tuple[int, ...] = ()
    level: int = 0


def test_lists_are_not_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make(name: str, budget: int, arguments: dict[str, str]) -> Listed:
        made.append(arguments)
        return Listed(budget, layers=tuple(map(int, arguments["layers"].split(","))), level=int(arguments["level"]))

    monkeypatch.setattr(_make, "method_class", lambda name: Listed)
    monkeypatch.setattr(_make, "make", make)
    found = _make.make_all("listed", 64, {"layers": "1,2,3", "level": "0,1"})
    assert list(found) == ["listed[level=0]", "listed[level=1]"]
    assert {arguments["layers"] for arguments in made} == {"1,2,3"}
