"""What the kernel experiment times: one decode step of one layer, exactly the call that a model makes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from questbench import attention
from questbench._noise import Noise
from questbench.cache import LayerCache
from questbench.experiments.counting import ReadCounter
from questbench.experiments.staged import StageClock, StagedOps
from questbench.kernels._ops import Ops
from questbench.methods._base import CacheShape, Method
from questbench.models._rotation import relative

QUERIES = 64
"""Different queries that an arm cycles through, so that no two consecutive steps select the same pages."""


@dataclass(frozen=True)
class LayerShape:
    """One attention layer at one text length."""

    query_heads: int
    kv_heads: int
    head_dim: int
    batch: int
    seq_len: int
    page_size: int
    dtype: torch.dtype
    rope_theta: float = 10000.0
    device: str = "cpu"

    @property
    def cache(self) -> CacheShape:
        """The part that traffic predictions need."""
        return CacheShape(self.query_heads, self.kv_heads, self.head_dim, self.page_size, self.dtype.itemsize)

    @property
    def scale(self) -> float:
        """1 / sqrt(D)."""
        return float(self.head_dim**-0.5)


class Inputs:
    """Random queries, keys and values of one cell, the same for every arm."""

    def __init__(self, shape: LayerShape, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(shape.dtype).to(shape.device)

        self.shape = shape
        self.q = draw(QUERIES, shape.batch, shape.query_heads, shape.head_dim)
        self.k = draw(QUERIES, shape.batch, shape.kv_heads, 1, shape.head_dim)
        self.v = draw(QUERIES, shape.batch, shape.kv_heads, 1, shape.head_dim)
        kind = shape.batch, shape.kv_heads, shape.head_dim, shape.dtype, shape.device
        self.noise = Noise(*kind, generator, most=shape.seq_len)

    def fill(self, layer: LayerCache, entries: int) -> None:
        """Append ``entries`` random entries to every row."""
        for k, v in self.noise.parts(entries):
            layer.append(k, v)


def new_layer(method: Method, ops: Ops, shape: LayerShape, capacity: int) -> LayerCache:
    """An empty layer cache of this shape."""
    return LayerCache(
        method,
        ops,
        rows=shape.batch,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        page_size=shape.page_size,
        dtype=shape.dtype,
        device=shape.device,
        capacity=capacity,
        query_heads=shape.query_heads,
        rotate=relative(shape.rope_theta, shape.head_dim, shape.device),
    )


class SharedPages:
    """Filled caches that several arms fork: those that keep everything then hold one text together, copy-on-write.

    A GPU's memory would not hold a copy of a long text for every method. It costs no honesty where something else is
    read between two timings, as the clock does: no arm finds what another one left in the cache.
    """

    def __init__(self, methods: Iterable[Method], ops: Ops, inputs: Inputs, copies: int, forks: int) -> None:
        methods = list(methods)
        shape = inputs.shape
        owner = next((method for method in methods if method.needs_bounds), methods[0])
        # Every fork gets open pages of its own, and pages to grow into.
        room = forks * (QUERIES + 2 * shape.page_size)
        self.bases = [new_layer(owner, ops, shape, shape.seq_len - 1 + room) for _ in range(copies)]
        for layer in self.bases:
            inputs.fill(layer, shape.seq_len - 1)

    def fork(self, method: Method) -> list[LayerCache]:
        """A cache of ``method`` over each copy."""
        return [base.fork(method) for base in self.bases]


class MethodArm:
    """``copies`` layer caches of one method, used in turn; each step appends one entry and attends.

    Args:
        shared: pages to fork instead of filling own ones, for methods that keep everything; then there are as many
            copies as it has.
    """

    def __init__(
        self, method: Method, ops: Ops, inputs: Inputs, copies: int, shared: SharedPages | None = None
    ) -> None:
        self.method, self.inputs = method, inputs
        self.scoring = attention.Scoring(inputs.shape.scale)
        if shared is not None and method.forget() is None:
            self.layers = shared.fork(method)
        else:
            self.layers = [self._filled(method, ops, inputs) for _ in range(copies)]
        self._start = [layer.held[0] for layer in self.layers]

    @property
    def copies(self) -> int:
        """Caches used in turn."""
        return len(self.layers)

    @staticmethod
    def _filled(method: Method, ops: Ops, inputs: Inputs) -> LayerCache:
        """A cache as the method would have it right before the step at which the text reaches ``seq_len``."""
        shape = inputs.shape
        keep = method.forget()
        entries = shape.seq_len - 1 if keep is None else min(shape.seq_len - 1, keep.entries)
        layer = new_layer(method, ops, shape, entries + QUERIES)
        inputs.fill(layer, entries)
        if keep is not None:
            # As if the text between the sinks and the rest had been dropped long ago.
            dropped = shape.seq_len - 1 - entries
            layer.seen = [shape.seq_len - 1] * shape.batch
            if layer.positions is not None:
                layer.positions[:, :, max(keep.sinks, 1) : entries] += dropped
            if layer.mass is not None:
                generator = torch.Generator(device=shape.device).manual_seed(0)
                layer.mass[:, :, :entries].uniform_(generator=generator)
        return layer

    def setup(self) -> None:
        """Bring every cache that grew back to its length; not timed. Evicting caches keep theirs by themselves."""
        if self.method.forget() is None:
            for layer, start in zip(self.layers, self._start, strict=True):
                layer.rewind(start)

    def step(self, index: int) -> None:
        """One decode step of one layer."""
        self.decode(self.layers[index % len(self.layers)], index)

    def decode(self, layer: LayerCache, index: int, observer: attention.Observer | None = None) -> Tensor:
        """Append entry ``index`` of the inputs and attend with query ``index``."""
        turn = index % QUERIES
        layer.append(self.inputs.k[turn], self.inputs.v[turn])
        return attention.decode(layer, self.inputs.q[turn], self.scoring, observer)

    def replay(self, steps: int) -> ReadCounter:
        """The same inputs once more, untimed and counted."""
        counter = ReadCounter(self.inputs.shape.query_heads, first_layer=0)
        for index in range(steps):
            self.setup()
            self.decode(self.layers[index % len(self.layers)], index, counter)
        self.setup()
        return counter

    def release(self) -> None:
        """Give the memory back."""
        for layer in self.layers:
            layer.release()
        self.layers = []


class StageArm:
    """A method's step with its ops called one by one through a stage clock, for the breakdown into stages."""

    def __init__(self, arm: MethodArm, clock: StageClock) -> None:
        self.arm, self.clock = arm, clock
        self.staged = StagedOps(arm.layers[0].ops, clock.mark)

    def measure(self, rounds: int) -> dict[str, list[float]]:
        """Seconds per stage, one sample per round; the ops are set back afterwards."""
        samples: dict[str, list[float]] = {}
        plain = self.arm.layers[0].ops
        for layer in self.arm.layers:
            layer.ops = self.staged
        try:
            for index in range(rounds + 2):
                self.arm.setup()
                self.staged.marks.clear()
                self.clock.begin()
                self.arm.step(index)
                seconds = self.clock.seconds(self.staged.marks)
                if index >= 2:
                    for stage, spent in seconds.items():
                        samples.setdefault(stage, []).append(spent)
        finally:
            for layer in self.arm.layers:
                layer.ops = plain
        return samples
