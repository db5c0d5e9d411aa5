"""Needs --data: LongBench-E, the 13 sets of LongBench with even lengths, by context (https://arxiv.org/abs/2308.14508).

As ``longbench``; ``bucket=0-4k``, ``4-8k`` or ``8k+`` keeps the contexts of so many words, as upstream reports them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from questbench import registry
from questbench.tasks import _longbench as base

ABSENT = ("narrativeqa", "musique", "qmsum", *base.CHINESE)
"""Sets that upstream did not extend."""
OURS = tuple(name for name in base.SETS if name not in ABSENT)


@dataclass(frozen=True)
class LongBenchE(base.LongBench):
    """The sets with even lengths."""

    set: str = "all"
    """One set, several with ``+``, or ``all``."""
    bucket: str = "all"
    """Words of the context: all, 0-4k, 4-8k or 8k+."""

    suffix: ClassVar[str] = "_e"
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {"all": OURS}

    def __post_init__(self) -> None:
        """Refuse unknown sets and buckets."""
        super().__post_init__()
        if self.bucket not in ("all", *base.BUCKETS):
            raise registry.unknown("bucket of longbench_e", self.bucket, ["all", *base.BUCKETS])

    @classmethod
    def sets(cls) -> tuple[str, ...]:
        """All thirteen."""
        return OURS

    @property
    def label(self) -> str:
        """``longbench_e:set=qasper``, with the bucket where there is one."""
        return super().label + ("" if self.bucket == "all" else f":bucket={self.bucket}")

    def keep(self, row: Mapping[str, Any], where: str) -> bool:
        """Rows of the bucket."""
        return super().keep(row, where) and self.bucket in ("all", base.bucket(row["length"]))
