"""Proof of sparsity: entries are counted where they are read, in the attention op itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from questbench.cache import LayerCache


@dataclass
class Reads:
    """What one decode step read in one layer."""

    visible: float
    """Entries one query head saw, mean over heads."""
    read: float
    """Distinct entries attended per KV head, mean over heads."""
    resident: int
    """Entries the cache held."""
    scored: int
    """Keys read only to decide what to attend (yardsticks)."""
    everything: bool
    """Every KV head attended the whole text although it was longer than the budget."""
    needle_read: float | None
    """Share of the evidence that was read: best span, mean over KV heads."""
    needle_resident: bool | None
    """Some span of the evidence was resident, in whole, in every KV head."""


@dataclass
class ReadCounter:
    """An observer that counts what the layers from ``first_layer`` on read, for a batch of one row.

    Args:
        query_heads: query heads of the model.
        first_layer: layers before it are dense under every method and not counted.
        needles: text positions of each span of evidence; any one span is enough to answer.
    """

    query_heads: int
    first_layer: int
    needles: Sequence[Sequence[int]] = ()
    steps: list[list[Reads]] = field(default_factory=list)
    """Per decode step, one entry per counted layer."""
    _last_layer: int = -1

    def step(self, layer: LayerCache, visits: Tensor) -> None:
        """See :class:`questbench.attention.Observer`."""
        if layer.index < self.first_layer:
            return
        if layer.index <= self._last_layer or not self.steps:
            self.steps.append([])
        self._last_layer = layer.index
        seen, held = layer.seen[0], layer.held[0]
        counts = visits[0, :, :held]
        distinct = int((counts > 0).sum())
        method = layer.method
        limited = method.budgeted and seen > method.budget and layer.steps >= method.warmup_steps
        needle_read, needle_resident = self._evidence(layer, counts)
        self.steps[-1].append(
            Reads(
                visible=int(counts.sum()) / self.query_heads,
                read=distinct / layer.kv_heads,
                resident=held,
                scored=method.tokens_scored(seen),
                everything=limited and distinct == seen * layer.kv_heads,
                needle_read=needle_read,
                needle_resident=needle_resident,
            )
        )

    def mean(self, name: str, *, first: int = 0) -> float:
        """Mean of a field over layers and over steps from ``first`` on; NaN without any."""
        values = [getattr(reads, name) for step in self.steps[first:] for reads in step]
        return sum(values) / len(values) if values else float("nan")

    @property
    def fallback(self) -> bool:
        """Some counted layer ran dense in some step without its method asking for it."""
        return any(reads.everything for step in self.steps for reads in step)

    def _evidence(self, layer: LayerCache, counts: Tensor) -> tuple[float | None, bool | None]:
        if not self.needles:
            return None, None
        held = counts.shape[1]
        best_read, whole = 0.0, False
        for span in self.needles:
            if layer.positions is None:
                hit = counts[:, list(span)] > 0
                best_read, whole = max(best_read, float(hit.float().mean())), True
                continue
            place = layer.positions[0, :, :held]
            present = [(place == position) for position in span]
            best_read = max(best_read, sum(float((p & (counts > 0)).any(1).float().mean()) for p in present) / len(span))
            whole |= all(bool(p.any(1).all()) for p in present)
        return best_read, whole
