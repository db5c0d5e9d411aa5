"""Dense attention of another library over our pages, step after step: what a captured loop asks of it, and when."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from questbench.kernels._paged import Paged


@dataclass(frozen=True)
class Heads:
    """What a plan must know besides pages and lengths."""

    query: int
    kv: int
    dim: int
    page_size: int
    dtype: torch.dtype
    scale: float
    softcap: float = 0.0


class DenseSteps(ABC):
    """Dense attention of the layers that share one page table, step after step."""

    def prepare(self, held: Sequence[int]) -> None:
        """Outside the graph, before every step: rows hold ``held[b]`` entries, this step's not counted."""

    def refresh(self, lengths: Tensor) -> None:
        """Inside, once per step: ``lengths`` ``[B]`` int32 counts this step's entry."""

    @abstractmethod
    def attend(self, q: Tensor, paged: Paged, out: Tensor) -> None:
        """Inside, once per layer, after :meth:`refresh`: attention of ``q`` ``[B, Hq, D]`` into ``out``."""
