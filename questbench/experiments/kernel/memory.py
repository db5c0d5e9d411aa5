"""Whether a cell of the kernel experiment fits into memory, told before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    baselines: int = 0
    """Backends that attend over shared pages too."""

    @property
    def shared_copies(self) -> int:
        """Copies of the shared pages: as many as the arm that reads the least needs."""
        return max(self.copies[name] for name, method in self.chosen.items() if method.keeps_all)

    @property
    def forks(self) -> int:
        """Caches over each copy of the shared pages."""
        return sum(method.keeps_all for method in self.chosen.values()) + self.baselines

    @property
    def own(self) -> int:
        """Bytes of all caches."""
        entry = self.shape.cache.entry_bytes * self.shape.batch
        total = 0
        for name, method in self.chosen.items():
            if not (method.keeps_all and self.shared):
                total += int(self.copies[name] * method.tokens_resident(self.shape.seq_len) * entry)
        if self.shared:
            room = self.forks * (QUERIES + 2 * self.shape.page_size)
            bounded = 1 + any(method.needs_bounds is not None for method in self.chosen.values()) / self.shape.page_size
            total += int(self.shared_copies * (self.shape.seq_len + room) * entry * bounded)
        return total

    @property
    def torch(self) -> int:
        """Bytes of the contiguous keys and values that torch's attention reads."""
        shape = self.shape
        stores = 1
        if shape.device == "cpu":
            stores = shape.query_heads // shape.kv_heads + (shape.query_heads != shape.kv_heads)
        return self.copies["dense"] * shape.seq_len * shape.cache.entry_bytes * shape.batch * stores


def fitting(need: Need) -> str | None:
    """Refuse a cell that cannot fit, instead of being killed half-way.

    Returns:
        ``None``, or on a GPU why torch's attention must be left out so that the others fit.

    Raises:
        CellError: it does not fit.
    """
    device = need.shape.device
    scratch = SCRATCH[device.partition(":")[0]]
    alone, whole = int(SLACK * need.own), int(SLACK * (need.own + need.torch))
    wanted = whole if device == "cpu" else alone
    hint = "Use a shorter --seq-len, a smaller --batch or fewer methods."
    costs.require(wanted, device, hint=hint, reserved=scratch)
    if whole > costs.left(device, scratch):
        return f"out of memory: contiguous keys and values need another {costs.gib(whole - alone)}."
    return None
