"""RULER's multi-key task without a haystack: as many needles as fit, one of which is asked for (https://arxiv.org/abs/2404.06654)."""

from __future__ import annotations

from questbench.tasks._ruler_niah import RulerNiah


class NiahMultikey2(RulerNiah):
    """One number among nothing but numbers."""

    haystack = "needle"
