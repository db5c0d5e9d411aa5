"""The CUDA backend over CPU tensors: its own Python side, the kernels in the block emulator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from watched import Watched

from questbench.kernels import _build

SEEDS = (0, 1, 2, 3)
"""Schedules that each call of the kernel tests runs under: in order, and the three random kinds."""
PROCESSORS = 132
"""Of an H200. Long rows are then split as far as they ever are."""


def watched(module: Any, seeds: Sequence[int] = SEEDS, processors: int = PROCESSORS) -> Watched:
    """The ops, carried out by a library that :func:`build_emulator` made."""
    from questbench.kernels.cuda import COUNTERS, CudaLibrary, CudaOps, eager

    class Emulated(CudaLibrary):
        def load(self) -> Any:
            return module

    library = Emulated(processors)

    def rest() -> None:
        for workspace in library._workspaces.values():
            assert (workspace[:COUNTERS] == 0).all(), "a kernel leaves a counter that is not zero"

    return Watched(CudaOps(eager(library)), module.emulator_set_seed, seeds, rest)


def load(library: Path) -> Any:
    """The functions of a compiled library."""
    return _build.loaded(_build.BuildResult(library, 0.0, cached=True))
