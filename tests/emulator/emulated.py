"""The CUDA backend over CPU tensors: its own Python side, the kernels in the block emulator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from watched import Watched

from questbench.kernels import _build_cuda

SEEDS = (0, 1, 2, 3)
"""Schedules that each call of the kernel tests runs under: in order, and the three random kinds."""


def watched(module: Any, seeds: Sequence[int] = SEEDS) -> Any:
    """The five words, carried out by a library that :func:`build_emulator` made."""
    from questbench.kernels.cuda import CudaOps

    return Watched(CudaOps(module), module.emulator_set_seed, seeds)


def load(library: Path) -> Any:
    """The functions of a compiled library."""
    torch.set_num_threads(1)
    return _build_cuda._load(_build_cuda.BuildResult(library, 0.0, cached=True))
