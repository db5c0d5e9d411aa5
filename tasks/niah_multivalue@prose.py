"""RULER's multi-value task with prose of our own for essays: four numbers of one key, all asked for (https://arxiv.org/abs/2404.06654)."""

from __future__ import annotations

from typing import ClassVar, Literal

from questbench.tasks._ruler_niah import RulerNiah


class NiahMultivalue(RulerNiah):
    """Four numbers of one key in prose."""

    haystack: ClassVar[Literal["noise", "prose", "needle"]] = "prose"
    values_per_key: ClassVar[int] = 4
    binary: ClassVar[bool] = False
