"""RULER's second needle task with prose of our own for essays: one number for a key of two words (https://arxiv.org/abs/2404.06654)."""

from __future__ import annotations

from questbench.tasks._ruler_niah import RulerNiah


class NiahSingle2(RulerNiah):
    """One number in prose."""

    haystack = "prose"
