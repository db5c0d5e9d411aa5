"""RULER's multi-key task with prose of our own for essays: four keys, one of which is asked for (https://arxiv.org/abs/2404.06654)."""

from __future__ import annotations

from questbench.tasks._ruler_niah import RulerNiah


class NiahMultikey1(RulerNiah):
    """One number out of four in prose."""

    haystack = "prose"
    keys = 4
