"""RULER's first needle task: one number for a key of two words, in five repeated sentences (https://arxiv.org/abs/2404.06654)."""

from __future__ import annotations

from questbench.tasks._ruler_niah import RulerNiah


class NiahSingle1(RulerNiah):
    """One number in noise."""

    haystack = "noise"
