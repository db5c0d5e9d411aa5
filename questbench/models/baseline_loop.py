"""The captured decode loop with the dense attention of another library: the baseline of sparse loops.

Everything but attention is the step of :class:`GraphLoop`: matrices, norms, rotation, append, sampling, cache. So the
difference between the two is attention alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from questbench.cache import LayerCache
from questbench.errors import CellError
from questbench.kernels._flashinfer_steps import DenseSteps, Heads
from questbench.models import _plan
from questbench.models.graph_loop import GraphLoop
from questbench.models.hf_cache import SparseCache

AGREE = 0.02
"""Largest difference to our own dense attention, relative to its largest value. Storage of 16 bits explains a few
thousandths; a wrong page or a missing entry is far above."""

Make = Callable[[Tensor, Heads], DenseSteps]
"""From a page table ``[B, P]`` that spans all steps, and what the heads are like, to the attention over it."""


class BaselineLoop(GraphLoop):
    """Greedy decode steps by replay over a dense cache.

    Args:
        make: the attention.

    Raises:
        PrerequisiteError: see :class:`GraphLoop`; or some layer is not dense.
        CellError: at the first captured step, if the attention differs from our own.
    """

    def __init__(self, model: PreTrainedModel, cache: SparseCache, *, make: Make, **options: Any) -> None:
        super().__init__(model, cache, **options)
        self._make = make
        self._of_layer: dict[int, DenseSteps] = {}
        self._leaders: dict[int, tuple[DenseSteps, LayerCache]] = {}
        """The first layer of every page table: lengths are taken from it."""

    def _unfit(self) -> str | None:
        if any(layer.method.budgeted for layer in self.layers):
            return "another library attends to everything, and this cache is not dense"
        return super()._unfit()

    def _before_recording(self) -> None:
        assert self.plan is not None
        made: dict[Any, DenseSteps] = {}
        for index, (block, layer) in enumerate(zip(self.plan.blocks, self.cache.layers, strict=True)):
            store = layer.store
            heads = Heads(
                block.heads,
                block.kv_heads,
                block.head_dim,
                store.page_size,
                store.dtype,
                block.scoring.scale,
                block.scoring.softcap,
            )
            same = heads, tuple(store.held), tuple(store.page_table.flatten().tolist())
            if same not in made:
                made[same] = self._make(store.page_table, heads)
                self._leaders[index] = made[same], store
                _try_out(made[same], store, heads)
            self._of_layer[index] = made[same]

    def _prepare(self) -> None:
        for steps, store in self._leaders.values():
            steps.prepare(store.held)

    def _attend(self, block: _plan.Block, layer: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        steps = self._of_layer.get(layer.index) if self._of_layer else None
        if steps is None:
            return super()._attend(block, layer, q, k, v)
        store = layer.store
        store.append(k, v)
        if layer.index in self._leaders:
            steps.refresh(store.lengths)
        out = steps.attend(q, store.paged.k, store.paged.v, store.lengths)
        store.end_step()
        return out.flatten(1)


def _try_out(steps: DenseSteps, store: LayerCache, heads: Heads) -> None:
    """Run once outside a graph, which compiles what must be compiled, and compare with our own attention."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn((store.rows, heads.query, heads.dim), generator=generator).to(store.device, heads.dtype)
    steps.prepare([held - 1 for held in store.held])
    steps.refresh(store.lengths)
    got = steps.attend(q, store.paged.k, store.paged.v, store.lengths).float()
    want = store.ops.attend(q, store.paged, heads.scale, softcap=heads.softcap).float()
    difference = float((got - want).abs().amax() / want.abs().amax())
    if not difference <= AGREE:
        raise CellError(f"its attention is off by {difference:.1%} of the largest value")
