"""Memory of an end-to-end run: what a cell will need, and the peaks that its phases reach."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from questbench.experiments import costs
from questbench.methods._base import CacheShape, Method

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


LIBRARY_BYTES = 320 << 20
"""Workspaces of another library: two of 128 MiB, and smaller ones per path."""


@dataclass
class Peak:
    """The largest memory during a block, above what was in use when it began; ``None`` where nobody tells."""

    rise: int | None = None


@contextlib.contextmanager
def peak(device: str) -> Iterator[Peak]:
    """Watch the block: allocated memory on a CUDA device, resident memory of the process on a CPU (Linux)."""
    found = Peak()
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        torch.cuda.synchronize(device)
        found.rise = int(torch.cuda.max_memory_allocated(device)) - before
        return
    start = _resident("VmRSS") if _reset_high_water() else None
    yield found
    high = _resident("VmHWM")
    if start is not None and high is not None:
        found.rise = max(high - start, 0)


def _reset_high_water() -> bool:
    """Let the kernel forget the highest resident memory so far; false where it does not let us."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _resident(name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None


@dataclass(frozen=True)
class Need:
    """The memory that a cell will allocate beside the weights; the rule that caches are allocated by ahead.

    The prompts of all rows are stored once, in pages that the methods share, with bounds; every method owns the pages
    of its new entries (one that drops has dense layers too) and one that drops ``entries + 1`` entries per row besides.
    While a prompt runs, activations of one part of it are alive.
    """

    shared: int
    own: Mapping[str, int]
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.shared + sum(self.own.values()) + self.working

    def check(self, device: str) -> None:
        """Refuse a cell that cannot fit instead of being killed half-way.

        Raises:
            CellError: it cannot.
        """
        hint = "Use a shorter --seq-len, a smaller --batch, fewer methods or --cache-fill random."
        costs.require(self.total, device, beside="beside the weights", hint=hint)


def need(
    shape: CacheShape,
    methods: Mapping[str, Method],
    *,
    layers: int,
    rows: int,
    seq_len: int,
    room: int,
    part: int,
    widest: int,
    windows: Sequence[int] = (),
    baselines: int = 0,
) -> Need:
    """The rule of :class:`Need` in numbers.

    Args:
        shape: of one layer's cache.
        layers: full-attention layers.
        room: new entries per row that are allocated ahead.
        part: tokens of the prompt that run through the model at once; 0 where nothing runs.
        widest: widest activation of the model, in elements.
        windows: of the sliding layers; every method holds its own.
        baselines: dense loops of other libraries, with their workspaces.
    """
    size = shape.page_size
    entry = shape.entry_bytes * rows * layers
    paged = -(-(seq_len + room) // size) * size
    new = -(-room // size) * size + 2 * size
    slid = shape.entry_bytes * rows * sum(min(window, seq_len + room) for window in windows)
    own = {}
    for name, method in methods.items():
        entries = new
        entries += 0 if method.keeps_all else method.tokens_resident(seq_len + room) + size
        # What is gathered is copied once more, one layer at a time.
        copied = 0 if method.keeps_all else 3 * shape.entry_bytes * rows * seq_len
        own[name] = entry * entries + entry * entries // size + copied + slid
    if baselines:
        own["baselines"] = baselines * (entry * new + entry * new // size + slid) + LIBRARY_BYTES
    working = 4 * rows * part * widest * shape.element_bytes
    if part and any(method.prompt_mass == "sum" for method in methods.values()):
        working += 4 * (128 << 20)
    return Need(entry * paged + entry * paged // size, own, working)
