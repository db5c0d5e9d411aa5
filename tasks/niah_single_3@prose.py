"""RULER's third needle task with prose of our own for essays: one UUID for a key of two words (https://arxiv.org/abs/2404.06654)."""

from __future__ import annotations

from questbench.tasks._ruler_niah import RulerNiah


class NiahSingle3(RulerNiah):
    """One UUID in prose."""

    haystack = "prose"
    value_kind = "uuid"
