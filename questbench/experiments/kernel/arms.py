"""What the kernel experiment times: one decode step of one layer, exactly the call that a model makes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from questbench import attention
from questbench._noise import Noise
from questbench.cache import Layer, LayerCache, fork_layer, make_layer
from questbench.experiments.counting import ReadCounter
from questbench.experiments.staged import StageClock, rest, staged
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

    def fill(self, layer: Layer, length: int) -> None:
        """Append as many random entries to every row as each part of a layer holds of a text of this length."""
        for number, part in enumerate(layer.parts):
            for k, v in self.noise.parts(part.method.tokens_resident(length + 1) - 1):
                part.append(layer.split(k)[number], layer.split(v)[number])


def new_layer(method: Method, ops: Ops, shape: LayerShape, room: int) -> Layer:
    """An empty layer cache of this shape, with room for what each part holds of the text and for ``room`` more."""
    return make_layer(
        method,
        ops,
        shape.cache,
        rows=shape.batch,
        dtype=shape.dtype,
        device=shape.device,
        capacity=lambda own: own.tokens_resident(shape.seq_len) - 1 + room,
        rotate=relative(shape.rope_theta, shape.head_dim, shape.device, compiled=ops.name == "cpu"),
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
        self.bases = [new_layer(owner, ops, shape, room) for _ in range(copies)]
        for layer in self.bases:
            inputs.fill(layer, shape.seq_len - 1)

    def fork(self, method: Method) -> list[Layer]:
        """A cache of ``method`` over each copy."""
        return [fork_layer(base, method) for base in self.bases]


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
        if shared is not None and method.keeps_all:
            self.layers = shared.fork(method)
        else:
            self.layers = [self._filled(method, ops, inputs) for _ in range(copies)]
        self._start = [(part, part.held[0]) for part in self.parts if part.method.keep_step() is None]

    @property
    def copies(self) -> int:
        """Caches used in turn."""
        return len(self.layers)

    @property
    def parts(self) -> list[LayerCache]:
        """What the caches are stored in."""
        return [part for layer in self.layers for part in layer.parts]

    @staticmethod
    def _filled(method: Method, ops: Ops, inputs: Inputs) -> Layer:
        """A cache as the method would have it right before the step at which the text reaches ``seq_len``."""
        shape, length = inputs.shape, inputs.shape.seq_len - 1
        layer = new_layer(method, ops, shape, QUERIES)
        inputs.fill(layer, length)
        for part in layer.parts:
            keep, entries = part.method.keep_prompt() or part.method.keep_step(), part.held[0]
            if keep is not None:
                # As if the text between the sinks and the rest had been dropped long ago.
                part.seen = [length] * shape.batch
                if part.positions is not None:
                    part.positions[:, :, max(keep.sinks, 1) : entries] += length - entries
                if part.mass is not None:
                    generator = torch.Generator(device=shape.device).manual_seed(0)
                    part.mass[:, :, :entries].uniform_(generator=generator)
        return layer

    def setup(self) -> None:
        """Bring every cache that grew back to its length; not timed. Evicting caches keep theirs by themselves."""
        for part, start in self._start:
            part.rewind(start)

    def step(self, index: int) -> None:
        """One decode step of one layer."""
        self.decode(self.layers[index % len(self.layers)], index)

    def decode(self, layer: Layer, index: int, observer: attention.Observer | None = None) -> Tensor:
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


def stages(arm: MethodArm, clock: StageClock, rounds: int) -> dict[str, list[float]]:
    """Seconds per stage of a method's step whose ops are called one by one, one sample per round.

    ``rest`` is what stands around the ops: calls from Python, and what a method does with torch.
    """
    samples: dict[str, list[float]] = {}
    with staged(arm.parts, clock.mark) as marks:
        for index in range(rounds + 2):
            arm.setup()
            marks.clear()
            clock.begin()
            before = clock.mark()
            arm.step(index)
            (whole,) = clock.seconds([("whole", before, clock.mark())]).values()
            seconds = clock.seconds(marks)
            seconds["rest"] = rest(whole, seconds.values())
            if index >= 2:
                for stage, spent in seconds.items():
                    samples.setdefault(stage, []).append(spent)
    return samples
