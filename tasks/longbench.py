"""Needs --data: LongBench v1, 18 of its 21 sets with their own prompts and metrics (https://arxiv.org/abs/2308.14508).

    --task longbench                  the six sets of the Quest paper's Fig. 7, each a task of its own
    --task longbench:set=qasper       one; set=qasper+trec two, set=english all sixteen English ones
    --task longbench:set=lsht         Chinese, as passage_retrieval_zh is; the other three need a segmenter

Prompts longer than ``--seq-len`` lose their middle (upstream's rule; the default is upstream's 31,500 tokens for the
paper's model). Shorter ones stay as they are: lengths here are the documents' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from questbench.tasks import _longbench as base


@dataclass(frozen=True)
class LongBenchV1(base.LongBench):
    """The main benchmark: 150 to 500 rows a set."""

    set: str = "paper"
    """One set, several with ``+``, or ``paper`` or ``english``."""

    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {"paper": base.PAPER, "english": base.ENGLISH}

    @classmethod
    def sets(cls) -> tuple[str, ...]:
        """Sixteen in English, two in Chinese."""
        return tuple(base.SETS)
