"""What the model decides about scores, and who may watch a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from questbench.cache import Layer


@dataclass(frozen=True)
class Scoring:
    """What turns products into probabilities; the model decides it, the method does not."""

    scale: float
    softcap: float = 0.0
    sinks: Tensor | None = None
    """``[Hq]`` fp32 logits without a value (gpt-oss)."""

    @property
    def plain(self) -> bool:
        """Whether probabilities are the softmax of scaled products and nothing else: all that fused kernels know."""
        return self.softcap == 0.0 and self.sinks is None

    def split(self, layer: Layer) -> tuple[Scoring, ...]:
        """That of the query heads of each part of a layer."""
        if self.sinks is None:
            return (self,) * len(layer.parts)
        return tuple(Scoring(self.scale, self.softcap, sinks[0]) for sinks in layer.split(self.sinks[None]))


class Observer(Protocol):
    """Watches decode steps without changing them."""

    def step(self, layer: Layer, visits: Tensor) -> None:
        """Called after each read, before anything is forgotten.

        Args:
            layer: the cache that was read; ``layer.seen`` is the text length, ``layer.resident`` what was resident.
            visits: ``[B, Hk, slots]`` int32, how many query heads of each KV head read each slot.
        """
        ...
