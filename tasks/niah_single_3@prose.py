"""RULER's third needle task with prose of our own for essays: one UUID for a key of two words (https://arxiv.org/abs/2404.06654)."""

from __future__ import annotations

from typing import ClassVar, Literal

from questbench.tasks._ruler_niah import RulerNiah


class NiahSingle3(RulerNiah):
    """One UUID in prose."""

    haystack: ClassVar[Literal["noise", "prose", "needle"]] = "prose"
    value_kind: ClassVar[str] = "uuid"
