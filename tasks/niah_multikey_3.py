"""RULER's multi-key task of UUIDs: as many pairs of them as fit, one of which is asked for (https://arxiv.org/abs/2404.06654)."""

from __future__ import annotations

from questbench.tasks._ruler_niah import RulerNiah


class NiahMultikey3(RulerNiah):
    """One UUID among nothing but pairs of UUIDs."""

    haystack = "needle"
    key_kind = "uuid"
    value_kind = "uuid"
