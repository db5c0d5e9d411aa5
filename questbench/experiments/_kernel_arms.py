"""What the kernel experiment times: one decode step of one layer, exactly the call that a model makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from questbench import attention
from questbench._memory import empty
from questbench.cache import LayerCache
from questbench.experiments._counting import ReadCounter
from questbench.methods._base import CacheShape, Method

if TYPE_CHECKING:
    from questbench.kernels._ops import Ops

QUERIES = 64
"""Different queries that an arm cycles through, so that no two consecutive steps select the same pages."""
NOISE_BYTES = 64 << 20
"""Random entries are drawn once and laid end to end: drawing gigabytes would take longer than measuring them."""


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
            return torch.randn(size, generator=generator).to(shape.dtype)

        self.shape = shape
        self.q = draw(QUERIES, shape.batch, shape.query_heads, shape.head_dim)
        self.k = draw(QUERIES, shape.batch, shape.kv_heads, 1, shape.head_dim)
        self.v = draw(QUERIES, shape.batch, shape.kv_heads, 1, shape.head_dim)
        entry = shape.kv_heads * shape.head_dim * shape.dtype.itemsize
        tokens = max(min(NOISE_BYTES // entry, shape.seq_len), 1)
        self.noise = draw(1, shape.kv_heads, tokens, shape.head_dim)

    def fill(self, layer: LayerCache, entries: int) -> None:
        """Append ``entries`` random entries to every row."""
        done = 0
        while done < entries:
            part = self.noise[:, :, : min(self.noise.shape[2], entries - done)].expand(self.shape.batch, -1, -1, -1)
            layer.append(part, part.flip(-1))
            done += part.shape[2]


class MethodArm:
    """``copies`` layer caches of one method, used in turn; each step appends one entry and attends."""

    def __init__(self, method: Method, ops: Ops, inputs: Inputs, copies: int) -> None:
        shape = inputs.shape
        self.method, self.inputs = method, inputs
        self.scoring = attention.Scoring(shape.scale)
        self.layers = [self._filled(method, ops, inputs) for _ in range(copies)]
        self._start = [layer.held[0] for layer in self.layers]

    @staticmethod
    def _filled(method: Method, ops: Ops, inputs: Inputs) -> LayerCache:
        """A cache as the method would have it right before the step at which the text reaches ``seq_len``."""
        shape = inputs.shape
        keep = method.forget()
        entries = shape.seq_len - 1 if keep is None else min(shape.seq_len - 1, keep.entries)
        layer = LayerCache(
            method,
            ops,
            rows=shape.batch,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            page_size=shape.page_size,
            dtype=shape.dtype,
            capacity=entries + QUERIES,
            query_heads=shape.query_heads,
            rotate=rotary(shape.rope_theta, shape.head_dim),
        )
        inputs.fill(layer, entries)
        if keep is not None:
            # As if the text between the sinks and the rest had been dropped long ago.
            dropped = shape.seq_len - 1 - entries
            layer.seen = [shape.seq_len - 1] * shape.batch
            if layer.positions is not None:
                layer.positions[:, :, max(keep.sinks, 1) : entries] += dropped
            if layer.mass is not None:
                layer.mass[:, :, :entries].uniform_(generator=torch.Generator().manual_seed(0))
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


class SdpaArm:
    """torch's scaled_dot_product_attention over contiguous keys and values that are there already (no append).

    Args:
        expanded: keys and values are stored once per query head instead of ``enable_gqa``.
    """

    def __init__(self, inputs: Inputs, copies: int, *, expanded: bool) -> None:
        shape = inputs.shape
        group = shape.query_heads // shape.kv_heads
        heads = shape.query_heads if expanded else shape.kv_heads
        self.inputs, self.expanded = inputs, expanded
        self.stores = []
        for _ in range(copies):
            k, v = (empty((shape.batch, heads, shape.seq_len, shape.head_dim), shape.dtype) for _ in "kv")
            width = inputs.noise.shape[2]
            for start in range(0, shape.seq_len, width):
                part = inputs.noise[:, :, : min(width, shape.seq_len - start)]
                part = part.repeat_interleave(group, dim=1) if expanded else part
                k[:, :, start : start + part.shape[2]] = part
                v[:, :, start : start + part.shape[2]] = part.flip(-1)
            self.stores.append((k, v))

    def setup(self) -> None:
        """Nothing grows."""

    def step(self, index: int) -> None:
        """One dense attention."""
        k, v = self.stores[index % len(self.stores)]
        q = self.inputs.q[index % QUERIES][:, :, None]
        F.scaled_dot_product_attention(q, k, v, enable_gqa=not self.expanded)


class StageArm:
    """A method's step with its ops called one by one through a clock, for the breakdown into stages."""

    def __init__(self, arm: MethodArm, clock: Callable[[], float]) -> None:
        from questbench.experiments._staged import StagedOps

        self.arm = arm
        self.staged = StagedOps(arm.layers[0].ops, clock)

    def measure(self, rounds: int) -> dict[str, list[float]]:
        """Seconds per stage, one sample per round; the ops are set back afterwards."""
        samples: dict[str, list[float]] = {}
        plain = self.arm.layers[0].ops
        for layer in self.arm.layers:
            layer.ops = self.staged
        try:
            for index in range(rounds + 2):
                self.arm.setup()
                self.staged.seconds.clear()
                self.arm.step(index)
                if index >= 2:
                    for stage, seconds in self.staged.seconds.items():
                        samples.setdefault(stage, []).append(seconds)
        finally:
            for layer in self.arm.layers:
                layer.ops = plain
        return samples


def rotary(theta: float, head_dim: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Llama's rotary embedding as a relative rotation, for methods that re-index positions."""
    frequency = theta ** -(torch.arange(0, head_dim, 2) / head_dim)

    def rotate(x: Tensor, delta: Tensor) -> Tensor:
        angle = (delta[:, None].float() * frequency).repeat(1, 2)[:, None]
        first, second = x.float().chunk(2, dim=-1)
        return (x.float() * angle.cos() + torch.cat([-second, first], dim=-1) * angle.sin()).to(x.dtype)

    return rotate
