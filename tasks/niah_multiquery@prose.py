"""RULER's multi-query task with prose of our own for essays: four keys, all asked for at once (https://arxiv.org/abs/2404.06654)."""

from __future__ import annotations

from questbench.tasks._ruler_niah import RulerNiah


class NiahMultiquery(RulerNiah):
    """Four keys with a number each in prose."""

    haystack = "prose"
    keys = 4
    queries = 4
    binary = False
