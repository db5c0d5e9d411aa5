"""The dense baselines of the kernel experiment: torch's attention, and those that backends bring along.

None of them appends: keys and values of the whole text are there already, which favours the baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from questbench import kernels
from questbench._memory import empty
from questbench.cache import LayerCache
from questbench.experiments import torch_flex, torch_ways
from questbench.experiments.failures import first_line, out_of_memory
from questbench.experiments.kernel.arms import QUERIES, Inputs
from questbench.experiments.kernel.clock import Clock
from questbench.experiments.torch_ways import Way
from questbench.kernels._ops import Ops
from questbench.measure import stats

if TYPE_CHECKING:
    from questbench.kernels._ops import DensePath


ROUNDS = 7
"""Rounds in which the fastest of several ways is found."""
SECONDS = 5.0
AGREE = 0.02
"""A path whose output differs from our dense attention's by more than this, of the largest value, does not count."""
TORCH = "torch"
FLEX = "flex_attention"


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
    trial: Mapping[str, list[float]] = field(default_factory=dict)
    """Seconds of every way, round by round of the trial."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Ways that were not timed, with the reason."""


class Stores:
    """Contiguous keys and values of the whole text in several copies, which take turns whoever asks.

    So no way of attending finds in a cache what another one has just read.

    Args:
        expanded: stored once per query head instead of once per KV head.
    """

    def __init__(self, inputs: Inputs, copies: int, *, expanded: bool) -> None:
        shape = inputs.shape
        group = shape.query_heads // shape.kv_heads if expanded else 1
        self.copies: list[tuple[Tensor, Tensor]] = []
        self._next = 0
        size = (shape.batch, shape.kv_heads * group, shape.seq_len, shape.head_dim)
        for _ in range(copies):
            k, v = (empty(size, shape.dtype, shape.device) for _ in "kv")
            width = inputs.noise.shape[2]
            for start in range(0, shape.seq_len, width):
                part = inputs.noise[:, :, : min(width, shape.seq_len - start)]
                part = part.repeat_interleave(group, dim=1) if expanded else part
                k[:, :, start : start + part.shape[2]] = part
                v[:, :, start : start + part.shape[2]] = part.flip(-1)
            self.copies.append((k, v))

    def turn(self) -> tuple[Tensor, Tensor]:
        """The copy that was read longest ago."""
        self._next = (self._next + 1) % len(self.copies)
        return self.copies[self._next]


class TorchArm:
    """One of torch's ways to attend over keys and values that are there already (no append)."""

    def __init__(self, way: Way, stores: Stores, inputs: Inputs) -> None:
        self.way, self.stores, self.inputs, self.copies = way, stores, inputs, len(stores.copies)

    def setup(self) -> None:
        """Nothing grows."""

    def step(self, index: int) -> Tensor:
        """One dense attention."""
        return self.way(self.inputs.q[index % QUERIES], *self.stores.turn(), self.inputs.shape.scale)


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
        self.runs[copy](self.inputs.q[index % QUERIES], layer.paged.k, layer.paged.v, self.out)


def torch_baseline(
    inputs: Inputs, copies: int, clock: Clock, traffic: int, ways: Mapping[str, Way] | None = None, compile_s: float = 0
) -> Baseline:
    """The fastest of torch's ways to attend; each must give the right result first.

    They are told apart in rounds of their own. The fastest is then timed anew with the methods, so that the time shown
    is none of those it was chosen by: luck in the trial does not make it look faster than it is.
    On a GPU keys and values are never stored once per query head: its kernels read grouped heads, and memory is scarce.

    Args:
        ways: instead of torch's own; tests pass theirs.
        compile_s: longest time to compile flex_attention, 0 to leave it out.
    """
    shape = inputs.shape
    grouped = shape.query_heads != shape.kv_heads
    stores = Stores(inputs, copies, expanded=False)
    if ways is None:
        ways = torch_ways.GROUPED if grouped else torch_ways.UNGROUPED
    ways, reasons = dict(ways), {}
    compiled, why = torch_flex.flex(shape.batch, shape.query_heads, shape.kv_heads, shape.head_dim, inputs.q, compile_s)
    if compiled is None:
        reasons[FLEX] = why
    else:
        ways[FLEX] = compiled
    arms = {name: TorchArm(way, stores, inputs) for name, way in ways.items()}
    if grouped and shape.device == "cpu":
        expanded = Stores(inputs, copies, expanded=True)
        arms[torch_ways.EXPANDED] = TorchArm(torch_ways.plain, expanded, inputs)
    elif grouped:
        reasons[torch_ways.EXPANDED] = "not tried on a GPU: it stores keys and values once per query head"
    want = torch_ways.reference(inputs.q[0], *stores.copies[0], shape.scale)
    for name, arm in list(arms.items()):
        try:
            off = torch_ways.difference(arm.step(0), want)
        except Exception as error:  # kernels that do not exist for a dtype or head size, compilers that give up
            if out_of_memory(error):
                raise
            reasons[name] = first_line(error)
            del arms[name]
            continue
        if off > AGREE:
            reasons[name] = _off(off)
            del arms[name]
    return _fastest(arms, "torch", clock, traffic, reasons)


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
        paths, left_out = ops.dense_paths(inputs.q[0], layer.paged, inputs.shape.scale)
        found.append(paths)
        reasons |= left_out
    arms = {}
    for name in [name for name in found[0] if all(name in paths for paths in found)]:
        arm = PathArm([paths[name] for paths in found], layers, inputs)
        if (difference := _difference(arm, layers[0], inputs)) <= AGREE:
            arms[name] = arm
        else:
            reasons[name] = _off(difference)
    return _fastest(arms, ops.name, clock, traffic, reasons)


def _difference(arm: PathArm, layer: LayerCache, inputs: Inputs) -> float:
    """Largest difference to our own dense attention, relative to its largest value."""
    arm.out.fill_(torch.nan)
    arm.step(0)
    want = layer.ops.attend(inputs.q[0], layer.paged, inputs.shape.scale).float()
    return torch_ways.difference(arm.out, want)


def _off(difference: float) -> str:
    return f"its result is off by {difference:.1%} of the largest value"


def _fastest(arms: Mapping[str, Any], backend: str, clock: Clock, traffic: int, reasons: Mapping[str, str]) -> Baseline:
    reason = "; ".join(f"{name}: {why}" for name, why in reasons.items()) or None
    if not arms:
        return Baseline(backend=backend, reason=reason or "no way of attending works here", left_out=reasons)
    timed = clock.interleave(
        arms,
        dict.fromkeys(arms, traffic),
        rounds_min=ROUNDS,
        rounds_max=ROUNDS,
        target_noise=0.0,
        max_seconds=SECONDS,
        shuffle_seed=0,
    )
    trial = {name: timed[name].seconds for name in arms}
    paths = {name: stats.median(seconds) for name, seconds in trial.items()}
    best = min(paths, key=paths.__getitem__)
    return Baseline(arms[best], backend, best, paths, reason, trial, reasons)
