"""Proof of sparsity: entries are counted where they are read, in the attention op itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from questbench.cache import Layer


@dataclass
class Reads:
    """What one decode step read in one layer."""

    text: int
    """Tokens of the text so far, this step's included."""
    visible: float
    """Entries one query head saw, mean over heads."""
    read: float
    """Distinct entries attended per KV head, mean over heads."""
    resident: float
    """Entries the cache held per KV head, mean over heads."""
    pages: float
    """Distinct pages attended per KV head, mean over heads."""
    scored: int
    """Keys read only to decide what to attend (yardsticks)."""
    everything: bool
    """Every KV head attended the whole text although it was longer than the budget."""
    needle_read: tuple[float, ...] | None
    """Per needle, the share of its best mention that was read, mean over KV heads."""
    needle_resident: bool | None
    """Of every needle some mention was resident, in whole, in every KV head: enough to answer."""
    needle_present: bool | None
    """Of every needle each part of some mention was resident in some KV head: without that there is no answer."""


@dataclass
class ReadCounter:
    """An observer that counts what the layers from ``first_layer`` on read for one row.

    Args:
        query_heads: query heads of the model.
        first_layer: layers before it are dense under every method and not counted.
        needles: text positions of the evidence: needles that are all needed, each as mentions of which one is enough.
    """

    query_heads: int
    first_layer: int
    needles: Sequence[Sequence[Sequence[int]]] = ()
    """May be replaced between steps, for another question about the same text."""
    steps: list[list[Reads]] = field(default_factory=list)
    """Per decode step, one entry per counted layer."""
    _last_layer: int = -1

    def step(self, layer: Layer, visits: Tensor) -> None:
        """See :class:`questbench.attention.Observer`; for a batch of one row."""
        self.count(layer, visits, 0)

    def count(self, layer: Layer, visits: Tensor, row: int) -> None:
        """Count what row ``row`` of a batch read."""
        if layer.index < self.first_layer:
            return
        if layer.index <= self._last_layer or not self.steps:
            self.steps.append([])
        self._last_layer = layer.index
        seen, counts = layer.seen[row], visits[row]
        read = counts > 0
        distinct = int(read.sum())
        method = layer.method
        limited = method.budgeted and seen > method.budget and layer.steps >= method.warmup_steps
        needle_read, needle_resident, needle_present = self._evidence(layer, read, row)
        self.steps[-1].append(
            Reads(
                text=seen,
                visible=int(counts.sum()) / self.query_heads,
                read=distinct / layer.kv_heads,
                resident=layer.resident(row),
                pages=_pages(read, layer.page_size) / layer.kv_heads,
                scored=method.tokens_scored(seen),
                everything=limited and distinct == seen * layer.kv_heads,
                needle_read=needle_read,
                needle_resident=needle_resident,
                needle_present=needle_present,
            )
        )

    def mean(self, name: str, *, first: int = 0) -> float:
        """Mean of a field over layers and over steps from ``first`` on; NaN without any."""
        values = [getattr(reads, name) for step in self.steps[first:] for reads in step]
        return sum(values) / len(values) if values else float("nan")

    @property
    def sparse_share(self) -> float | None:
        """Share of the steps in which some counted layer left something of the text out; ``None`` without steps."""
        sparse = [any(reads.read < reads.text for reads in step) for step in self.steps]
        return sum(sparse) / len(sparse) if sparse else None

    @property
    def fallback(self) -> bool:
        """Some counted layer ran dense in some step without its method asking for it."""
        return any(reads.everything for step in self.steps for reads in step)

    def _evidence(
        self, layer: Layer, read: Tensor, row: int
    ) -> tuple[tuple[float, ...] | None, bool | None, bool | None]:
        """(per needle the share of its best mention that was read, all are whole, all are somewhere)."""
        if not self.needles:
            return None, None, None
        needles = [[_mention(layer, read, row, span) for span in mentions] for mentions in self.needles]
        return (
            tuple(max((share for share, _, _ in mentions), default=0.0) for mentions in needles),
            all(any(whole for _, whole, _ in mentions) for mentions in needles),
            all(any(present for _, _, present in mentions) for mentions in needles),
        )


@dataclass
class RowCounters:
    """An observer that hands what each row of a batch read to a counter of its own.

    Args:
        counters: one per sample of the batch.
        active: which of them the rows of the next step are, in the order of the rows.
    """

    counters: Sequence[ReadCounter]
    active: Sequence[int]

    def step(self, layer: Layer, visits: Tensor) -> None:
        """See :class:`questbench.attention.Observer`."""
        for row, sample in enumerate(self.active):
            self.counters[sample].count(layer, visits, row)


def _mention(layer: Layer, read: Tensor, row: int, span: Sequence[int]) -> tuple[float, bool, bool]:
    """(share of the tokens that was read, all are in every KV head, each is in some KV head)."""
    place = layer.places(row)
    if place is None:
        return float(read[:, list(span)].float().mean()), True, True
    held = [place == position for position in span]
    return (
        sum(float((slots & read[:, : place.shape[1]]).any(1).float().mean()) for slots in held) / len(span),
        all(bool(slots.any(1).all()) for slots in held),
        all(bool(slots.any()) for slots in held),
    )


def _pages(read: Tensor, page_size: int) -> int:
    """Pages with an entry that was read, over all heads; ``read`` is ``[Hk, slots]``."""
    missing = -read.shape[1] % page_size
    return int(F.pad(read, (0, missing)).unflatten(1, (-1, page_size)).any(2).sum())
