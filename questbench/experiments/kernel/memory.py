"""Whether a cell of the kernel experiment fits into memory, told before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from questbench.baselines._base import Baseline
from questbench.experiments import costs
from questbench.experiments.kernel.arms import QUERIES, LayerShape
from questbench.methods._base import Method

SLACK = 1.1
SCRATCH = {"cpu": 0, "cuda": 3 << 30}
"""Bandwidth probe, flush buffer, workspaces and the temporaries of recorded graphs."""


@dataclass(frozen=True)
class Need:
    """What the arms of one cell store."""

    shape: LayerShape
    chosen: Mapping[str, Method]
    copies: Mapping[str, int]
    """Copies of each method's cache."""
    shared: bool
    """Whether methods that keep everything share their pages."""
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    """Those that work here; any of them may attend over our pages, and some store the text anew."""

    @property
    def shared_copies(self) -> int:
        """Copies of the shared pages: as many as the arm that reads the least needs."""
        return max(self.copies[name] for name, method in self.chosen.items() if method.forget() is None)

    @property
    def forks(self) -> int:
        """Caches over each copy of the shared pages."""
        return sum(method.forget() is None for method in self.chosen.values()) + len(self.baselines)

    @property
    def own(self) -> int:
        """Bytes of all caches."""
        entry = self.shape.cache.entry_bytes * self.shape.batch
        total = 0
        for name, method in self.chosen.items():
            keep = method.forget()
            if keep is not None:
                total += self.copies[name] * min(self.shape.seq_len, keep.entries + 1) * entry
            elif not self.shared:
                total += self.copies[name] * self.shape.seq_len * entry
        if self.shared:
            room = self.forks * (QUERIES + 2 * self.shape.page_size)
            bounded = 1 + any(method.needs_bounds for method in self.chosen.values()) / self.shape.page_size
            total += int(self.shared_copies * (self.shape.seq_len + room) * entry * bounded)
        return total

    @property
    def anew(self) -> dict[str, int]:
        """Bytes of the text as baselines store it, by name."""
        shape, group = self.shape, self.shape.query_heads // self.shape.kv_heads
        text = self.copies["dense"] * shape.seq_len * shape.cache.entry_bytes * shape.batch
        return {name: one.stores(group, shape.device) * text for name, one in self.baselines.items()}


def fitting(need: Need) -> dict[str, str]:
    """Refuse a cell that cannot fit, instead of being killed half-way.

    Returns:
        On a GPU, which baselines must be left out so that all else fits, and why.

    Raises:
        CellError: it does not fit.
    """
    device, anew = need.shape.device, need.anew
    scratch = SCRATCH[device.partition(":")[0]]
    whole = int(SLACK * (need.own + sum(anew.values())))
    hint = "Use a shorter --seq-len, a smaller --batch or fewer methods."
    costs.require(whole if device == "cpu" else int(SLACK * need.own), device, hint=hint, reserved=scratch)
    if whole <= costs.left(device, scratch):
        return {}
    return {
        name: f"out of memory: contiguous keys and values need another {costs.gib(SLACK * size)}."
        for name, size in anew.items()
        if size
    }
