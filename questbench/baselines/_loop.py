"""The captured decode loop with the dense attention of another library: the baseline of sparse loops.

Everything but attention is the step of :class:`GraphLoop`: matrices, norms, rotation, append, sampling, cache. So the
difference between the two is attention alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from questbench.baselines._base import AGREE, Decode, Fastest, difference, fastest, tried
from questbench.baselines._steps import DenseSteps, Heads
from questbench.cache import LayerCache
from questbench.errors import CellError
from questbench.measure import timer
from questbench.models import _plan, hf
from questbench.models.graph_loop import GraphLoop
from questbench.models.hf_cache import SparseCache
from questbench.models.static_loop import StaticLoop

PATHS = 4
"""Most loops that baselines make over one cache, each with room for its new entries."""
WARM = 4
"""Steps that every loop makes first: the plain ones, the capture and one replay."""
SECONDS = 10.0


Make = Callable[[Tensor, Heads], DenseSteps]
"""From a page table ``[B, P]`` that spans all steps, and what the heads are like, to the attention over it."""


class StepArm:
    """One decode step of the whole model per call; caches that grow go back before every timing."""

    def __init__(self, loop: StaticLoop) -> None:
        self.loop = loop
        self._mark = loop.mark()

    def setup(self) -> None:
        """Undo the last steps where the method lets us; evicting caches keep their size by themselves."""
        self.loop.rewind(self._mark)

    def step(self, index: int) -> None:
        """One token per row."""
        del index
        self.loop.step()


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
        out = torch.empty_like(q)
        steps.attend(q, store.paged, out)
        store.end_step()
        return out.flatten(1)


def _try_out(steps: DenseSteps, store: LayerCache, heads: Heads) -> None:
    """Run once outside a graph, which compiles what must be compiled, and compare with our own attention."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn((store.rows, heads.query, heads.dim), generator=generator).to(store.device, heads.dtype)
    steps.prepare([held - 1 for held in store.held])
    steps.refresh(store.lengths)
    got = torch.full_like(q, torch.nan)
    steps.attend(q, store.paged, got)
    off = difference(got, store.ops.attend(q, store.paged, heads.scale, softcap=heads.softcap))
    if off > AGREE:
        raise CellError(f"its attention is off by {off:.1%} of the largest value")


def fastest_loop(run: Decode, made: Mapping[str, Make]) -> Fastest:
    """The fastest of several ways of attending: each gets a loop of its own over a fork of the same prompts.

    All make the same whole steps and are timed in interleaved rounds; the loop of the fastest is the arm.
    """
    if not run.captured:
        return Fastest(why="it is timed in the captured loop only: leave --loop out.")
    loops: dict[str, BaselineLoop] = {}
    left_out: dict[str, str] = {}
    for path, make in list(made.items())[:PATHS]:
        with tried(path, left_out):
            loops[path] = _begun(run, make)
    watch = timer.stopwatch(run.device)
    interleave = functools.partial(timer.interleave, stopwatch=watch)
    arms = {path: StepArm(loop) for path, loop in loops.items()}
    found = fastest(arms, interleave, left_out, max_seconds=SECONDS)
    for path, loop in loops.items():
        if path != found.path:
            hf.release(loop.cache)
    if found.arm is not None:
        found.arm.setup()  # to before the trial, whose steps must not take the room of those that are timed
        found.arm = found.arm.loop
    return found


def _begun(run: Decode, make: Make) -> BaselineLoop:
    assert run.fork is not None and run.first is not None
    cache = run.fork()
    try:
        loop = BaselineLoop(run.model, cache, steps=run.room, make=make)
        loop.tokens.copy_(run.first)
        for _ in range(WARM):
            loop.step()
        if run.device.startswith("cuda"):
            torch.cuda.synchronize(run.device)
    except Exception:
        hf.release(cache)
        raise
    return loop
