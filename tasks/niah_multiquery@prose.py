"""RULER's multi-query task with prose of our own for essays: four keys, all asked for at once (https://arxiv.org/abs/2404.06654)."""

from __future__ import annotations

from typing import ClassVar, Literal

from questbench.tasks._ruler_niah import RulerNiah


class NiahMultiquery(RulerNiah):
    """Four keys with a number each in prose."""

    haystack: ClassVar[Literal["noise", "prose", "needle"]] = "prose"
    keys: ClassVar[int] = 4
    queries: ClassVar[int] = 4
    binary: ClassVar[bool] = False
