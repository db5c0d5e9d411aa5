"""CUDA backend: the kernels in ``kernels/cuda`` as torch operators of the namespace ``questbench_cuda``.

Storage is fp16 or bf16, head dims 64, 128 and 256, groups of up to 16 query heads. Nothing synchronises: lengths,
counts and page tables are read on the device, grids are sized by shapes, and work goes to torch's current stream, so
that a decode step can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from questbench.kernels import _build, _build_cuda
from questbench.kernels._limits import Limits
from questbench.kernels._native import Library, NativeOps, functions, register
from questbench.kernels._ops import Ops

COUNTERS = 1 << 16
"""32-bit words at the start of a workspace that count blocks (``kCounters`` in bind.cu); zero between calls."""
TILE = 16
"""Entries that one warp takes at a time (``kTile``)."""
SPLITS_MAX = 256
"""Blocks that may share a list (``kMaxSplits``)."""
SHARED_PAGES = 16384
"""Pages whose keys select holds in shared memory (``kSharedPages``); it has no scratch for shorter texts."""
SHARED_ENTRIES = 16384
"""Entries of a list whose mass prune holds in shared memory (``kSharedEntries``), without scratch."""
STAGES = {64: 4, 128: 3, 256: 2}
"""Head dim -> tiles of a warp of attend in shared memory (``stages_for``)."""


class CudaLibrary:
    """The compiled kernels, and room for them to work in.

    Args:
        processors: multiprocessors to share the work among; the device's own by default.
    """

    def __init__(self, processors: int | None = None) -> None:
        self._places: tuple[int, int] | None = None if processors is None else (processors, SHARED_MEMORY)
        self._workspaces: dict[tuple[torch.device, int], Tensor] = {}

    def load(self) -> Any:
        """The module for this machine's device; compiles on first use."""
        return _build_cuda.load_cuda()

    def extra(self, op: str) -> Callable[..., tuple[Any, ...]]:
        """Counters and partial results for the ops whose blocks meet, scratch for long lists and for the mass."""
        of_op: dict[str, Callable[..., tuple[Any, ...]]]
        of_op = {"select": _keys, "attend": self._room, "prune": _masses}
        of_op |= dict.fromkeys(("score", "quantize", "estimate"), lambda: ())
        return of_op.get(op, self._counters)

    def _counters(self, k_pages: Tensor) -> tuple[Tensor]:
        return (self._workspace(k_pages, 0),)

    def _room(
        self,
        q: Tensor,
        k_pages: Tensor,
        page_table: Tensor,
        pages: Tensor | None,
        tokens: Tensor | None,
        mass: Tensor | None,
        mass_mode: int,
    ) -> tuple[Tensor, int, Tensor | None]:
        try:
            rows, heads, dim = q.shape
            lists, slots = k_pages.shape[1], page_table.shape[1] * k_pages.shape[2]
            entries = slots
            if (listed := pages if tokens is None else tokens) is not None:
                lists, entries = listed.shape[1], listed.shape[2] * (k_pages.shape[2] if tokens is None else 1)
            splits = self.splits(q.device, rows * lists, entries, dim)
        except (IndexError, ValueError):  # a tensor of another rank, which the binding refuses by name
            return self._workspace(q, 0), 1, None
        logits = None
        if mass is not None and mass_mode:
            logits = torch.empty((rows, heads, slots), dtype=torch.float32, device=q.device)
        return self._workspace(q, rows * heads * ((dim + 2) * splits + 2)), splits, logits

    def splits(self, device: torch.device, lists: int, entries: int, dim: int) -> int:
        """Blocks per list, as :func:`best_splits` says for this device."""
        if self._places is None:
            chip = torch.cuda.get_device_properties(device)
            self._places = chip.multi_processor_count, getattr(chip, "shared_memory_per_multiprocessor", SHARED_MEMORY)
        processors, shared = self._places
        return best_splits(lists, entries, processors * resident_blocks(dim, shared))

    def _workspace(self, like: Tensor, words: int) -> Tensor:
        """Zeroed once per device and stream, kept for as long as the process: graphs may have captured it."""
        stream = torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else 0
        held = self._workspaces.get((like.device, stream))
        small = held is None or held.numel() < COUNTERS + words
        if small and like.is_cuda and torch.cuda.is_current_stream_capturing():
            # The zeroing becomes part of the graph: nothing outside of it may rely on this memory.
            return torch.zeros(COUNTERS + words, dtype=torch.int32, device=like.device)
        if held is None or held.numel() < COUNTERS + words:
            held = torch.zeros(COUNTERS + 2 * words, dtype=torch.int32, device=like.device)
            _KEPT.append(held)
            self._workspaces[like.device, stream] = held
        return held


_KEPT: list[Tensor] = []
"""Workspaces that were too small later: a captured graph still writes to them."""
SHARED_MEMORY = 228 << 10
"""Bytes of a multiprocessor of sm_90 and sm_100, where torch does not tell."""


def resident_blocks(dim: int, shared: int) -> int:
    """Blocks of attend that a multiprocessor with ``shared`` bytes of shared memory holds at a time."""
    tiles = 2 * TILE * dim * 2  # keys and values; queries and those of the prefix are as large
    return max(1, shared // (tiles + 4 * STAGES.get(dim, 2) * tiles + (4 << 10)))


@functools.cache
def best_splits(lists: int, entries: int, places: int) -> int:
    """Blocks that share a list of up to ``entries`` entries, where ``places`` blocks run at a time.

    The time goes with the waves of blocks and with the share of a list that a block has. A last wave of a few blocks
    leaves most of the chip idle, and more splits mean more to merge: the fewest that come within a twentieth of the
    best are taken, each with two tiles or more for each of its four warps.
    """
    lists = max(lists, 1)
    most = max(1, min(-(-entries // (8 * TILE)), max(8 * places // lists, 1), SPLITS_MAX))
    seconds = [math.ceil(lists * splits / places) / splits for splits in range(1, most + 1)]
    return next(at for at, spent in enumerate(seconds, start=1) if spent <= 1.05 * min(seconds))


def _masses(logits: Tensor, pages: Tensor) -> tuple[Tensor]:
    room = (*pages.shape[:2], *logits.shape[2:]) if logits.shape[-1:] > (SHARED_ENTRIES,) else (0,)
    return (torch.empty(room, dtype=torch.int32, device=logits.device),)


def _keys(scores: Tensor) -> tuple[Tensor]:
    room = scores.shape if scores.shape[-1:] > (SHARED_PAGES,) else (0,)
    return (torch.empty(room, dtype=torch.int32, device=scores.device),)


def eager(library: Library) -> dict[str, Any]:
    """The ops of a CUDA library; the step is not fused, its three launches follow each other on the stream."""
    made = functions(library)
    del made["attend_top"]
    return made


_EAGER = eager(CudaLibrary())
_operators = register("questbench_cuda", "CUDA", _EAGER)


class CudaOps(NativeOps):
    """The ops in CUDA C++."""

    device = "cuda"
    dtypes = ("fp16", "bf16")
    limits = Limits(group=16, head_dims=(64, 128, 256), page_sizes=(4, 128), powers_of_two=True)
    attend_top = Ops.attend_top

    def __init__(self, made: dict[str, Any] | None = None, namespace: str | None = None) -> None:
        super().__init__(_EAGER if made is None else made, "questbench_cuda" if made is None else namespace)

    def unavailable(self) -> str | None:
        """A device, and nvcc or a library that was built before."""
        if not torch.cuda.is_available():
            return "torch finds no CUDA device here."
        if torch.cuda.get_device_capability() < (8, 0):
            return "the CUDA kernels need compute capability 8.0 or newer."
        if not _build.has_binding():
            return "the binding is not installed: pip install apache-tvm-ffi."
        if _build_cuda.toolkit() is None:
            return "no CUDA toolkit was found: set CUDA_HOME, or install one that has nvcc."
        return None
