"""RULER's multi-value task with prose of our own for essays: four numbers of one key, all asked for (https://arxiv.org/abs/2404.06654)."""

from __future__ import annotations

from questbench.tasks._ruler_niah import RulerNiah


class NiahMultivalue(RulerNiah):
    """Four numbers of one key in prose."""

    haystack = "prose"
    values_per_key = 4
    binary = False
