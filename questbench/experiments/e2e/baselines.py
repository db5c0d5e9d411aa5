"""Dense attention of other libraries inside the captured loop: which of a library's paths is right, and the fastest.

Every path gets a loop of its own over a fork of the same prompts, makes the same whole steps and is timed with the
others in interleaved rounds; the fastest stays for the cell's own rounds.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from questbench.experiments.e2e.arms import StepArm
from questbench.experiments.e2e.config import Cell
from questbench.experiments.e2e.session import PATHS, Session
from questbench.experiments.failures import first_line, out_of_memory
from questbench.experiments.kernel.baselines import backend_baselines
from questbench.measure import stats, timer
from questbench.models import hf

STEPS: Mapping[str, str] = {"flashinfer": "questbench.kernels._flashinfer_steps"}
"""Backend -> the module that plans its attention for captured steps."""
WARM = 4
"""Steps that every loop makes first: the plain ones, the capture and one replay."""
ROUNDS = 7
SECONDS = 10.0


@dataclass
class Baseline:
    """The fastest path of one library in one cell, or why there is none."""

    loop: Any = None
    path: str = ""
    paths: dict[str, float] = field(default_factory=dict)
    """Median seconds per token of every path that works."""
    reason: str | None = None
    """Why there is no loop; or, with a loop, why some paths were left out."""


def baselines(session: Session, base: Any, cell: Cell, first: Tensor, steps: int) -> Iterator[tuple[str, Baseline]]:
    """(name, what was found) of every backend that brings a dense baseline for this device."""
    for name, backend, reason in backend_baselines(cell.device):
        if backend is None:
            yield name, Baseline(reason=reason)
        elif not session.captured:
            yield name, Baseline(reason="it is timed in the captured loop only: leave --loop out.")
        elif name not in STEPS:
            yield name, Baseline(reason="it has no attention for captured steps.")
        else:
            yield name, _fastest(session, base, cell, first, steps, importlib.import_module(STEPS[name]))


def _fastest(session: Session, base: Any, cell: Cell, first: Tensor, steps: int, library: Any) -> Baseline:
    loops: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for path in library.names(torch.device(cell.device))[:PATHS]:
        loop = None
        try:
            loop = session.baseline_loop(base, cell, first, steps, functools.partial(library.make, path))
            for _ in range(WARM):
                loop.step()
            if cell.device.startswith("cuda"):
                torch.cuda.synchronize(cell.device)
            loops[path] = loop
        except Exception as error:  # a library of kernels compiled on the spot fails in ways of its own
            if out_of_memory(error):
                raise
            reasons[path] = first_line(error)
            if loop is not None:
                hf.release(loop.cache)
    left_out = "; ".join(f"{path}: {why}" for path, why in reasons.items()) or None
    if not loops:
        return Baseline(reason=left_out or "no way of attending works here")
    timed = timer.interleave(
        {path: StepArm(loop) for path, loop in loops.items()},
        rounds_min=ROUNDS,
        rounds_max=ROUNDS,
        target_noise=0.0,
        max_seconds=SECONDS,
        shuffle_seed=0,
        stopwatch=timer.CudaEvents(cell.device) if cell.device.startswith("cuda") else None,
    )
    paths = {path: stats.median(samples.seconds) for path, samples in timed.items()}
    best = min(paths, key=paths.__getitem__)
    for path, loop in loops.items():
        if path != best:
            hf.release(loop.cache)
    return Baseline(loops[best], best, paths, left_out)
