"""The dense baselines of the kernel experiment: torch's attention, and those that backends bring along.

None of them appends: keys and values of the whole text are there already, which favours the baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from questbench import kernels
from questbench._memory import empty
from questbench.experiments._kernel_arms import QUERIES, Inputs
from questbench.measure import stats

if TYPE_CHECKING:
    from questbench.cache import LayerCache
    from questbench.experiments._kernel_clock import Clock
    from questbench.kernels._ops import DensePath, Ops

ROUNDS = 7
"""Rounds in which the fastest of several ways is found."""
SECONDS = 5.0
AGREE = 0.02
"""A path whose output differs from our dense attention's by more than this, of the largest value, does not count."""
TORCH = "sdpa"


@dataclass
class Baseline:
    """The fastest way of one baseline in one cell, or why there is none."""

    arm: Any = None
    backend: str = "torch"
    path: str = ""
    paths: dict[str, float] = field(default_factory=dict)
    """Median seconds of every way that was tried."""
    reason: str | None = None
    """Why there is no arm; or, with an arm, why some ways were left out."""


class SdpaArm:
    """torch's scaled_dot_product_attention over contiguous keys and values that are there already (no append).

    Args:
        expanded: keys and values are stored once per query head instead of ``enable_gqa``.
    """

    def __init__(self, inputs: Inputs, copies: int, *, expanded: bool) -> None:
        shape = inputs.shape
        group = shape.query_heads // shape.kv_heads
        heads = shape.query_heads if expanded else shape.kv_heads
        self.inputs, self.expanded, self.copies = inputs, expanded, copies
        self.stores = []
        for _ in range(copies):
            k, v = (empty((shape.batch, heads, shape.seq_len, shape.head_dim), shape.dtype, shape.device) for _ in "kv")
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


class PathArm:
    """One dense path of a backend over several copies of the cache; nothing is appended and nothing grows."""

    def __init__(self, runs: Sequence[DensePath], layers: Sequence[LayerCache], inputs: Inputs) -> None:
        self.runs, self.layers, self.inputs, self.copies = runs, layers, inputs, len(layers)
        self.out = torch.empty_like(inputs.q[0])

    def setup(self) -> None:
        """Nothing grows."""

    def step(self, index: int) -> None:
        """One dense attention, without a word to the host."""
        copy = index % self.copies
        layer = self.layers[copy]
        self.runs[copy](self.inputs.q[index % QUERIES], layer.k_pages, layer.v_pages, self.out)


def torch_baseline(inputs: Inputs, copies: int, clock: Clock, traffic: int) -> Baseline:
    """The faster of torch's two ways to attend with grouped heads; for multi-head attention there is one.

    On a GPU keys and values are never stored once per query head: its kernels read grouped heads, and memory is scarce.
    """
    shape = inputs.shape
    if shape.query_heads == shape.kv_heads:
        return Baseline(SdpaArm(inputs, copies, expanded=True), path="contiguous")
    if shape.device != "cpu":
        return Baseline(SdpaArm(inputs, copies, expanded=False), path="enable_gqa")
    arms = {name: SdpaArm(inputs, copies, expanded=name == "expanded") for name in ("enable_gqa", "expanded")}
    return _fastest(arms, "torch", clock, traffic, None)


def backend_baselines(device: str) -> Iterator[tuple[str, Ops | None, str | None]]:
    """(name, backend, why it is not there) of every backend that brings a dense baseline for this device."""
    for name in kernels.names():
        kind = kernels.load_class(name)
        if kind.baseline and kind.device == device:
            reason = kernels.available()[name]
            yield name, None if reason else kernels.load(name), reason


def backend_baseline(ops: Ops, layers: Sequence[LayerCache], inputs: Inputs, clock: Clock, traffic: int) -> Baseline:
    """The fastest dense path of a backend that gives the right result.

    Args:
        layers: filled caches of the whole text, one per copy.
    """
    found: list[dict[str, DensePath]] = []
    reasons: dict[str, str] = {}
    for layer in layers:
        rest = layer.k_pages, layer.v_pages, layer.page_table, layer.lengths, inputs.shape.scale
        paths, left_out = ops.dense_paths(inputs.q[0], *rest)
        found.append(paths)
        reasons |= left_out
    arms = {}
    for name in [name for name in found[0] if all(name in paths for paths in found)]:
        arm = PathArm([paths[name] for paths in found], layers, inputs)
        if (difference := _difference(arm, layers[0], inputs)) <= AGREE:
            arms[name] = arm
        else:
            reasons[name] = f"its result is off by {difference:.1%} of the largest value"
    return _fastest(
        arms, ops.name, clock, traffic, "; ".join(f"{name}: {why}" for name, why in reasons.items()) or None
    )


def _difference(arm: PathArm, layer: LayerCache, inputs: Inputs) -> float:
    """Largest difference to our own dense attention, relative to its largest value."""
    arm.out.fill_(torch.nan)
    arm.step(0)
    rest = layer.page_table, layer.lengths, inputs.shape.scale
    want = layer.ops.attend(inputs.q[0], layer.k_pages, layer.v_pages, *rest).float()
    difference = float((arm.out.float() - want).abs().amax() / want.abs().amax())
    return difference if difference == difference else float("inf")


def _fastest(arms: Mapping[str, Any], backend: str, clock: Clock, traffic: int, reason: str | None) -> Baseline:
    if not arms:
        return Baseline(backend=backend, reason=reason or "no way of attending works here")
    timed = clock.interleave(
        arms,
        dict.fromkeys(arms, traffic),
        rounds_min=ROUNDS,
        rounds_max=ROUNDS,
        target_noise=0.0,
        max_seconds=SECONDS,
        shuffle_seed=0,
    )
    paths = {name: stats.median(timed[name].seconds) for name in arms}
    best = min(paths, key=paths.__getitem__)
    return Baseline(arms[best], backend, best, paths, reason)
