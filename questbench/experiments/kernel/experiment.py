"""The card of the kernel experiment, and its run: every cell that is not finished yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from questbench import units
from questbench.errors import CellError
from questbench.experiments.costs import Deadline, Forecast, duration
from questbench.experiments.engine import Progress, Unit, refusals_of, unusable, within
from questbench.experiments.kernel.config import Cell, KernelConfig, cells, heads, methods, params, shape_name, timing
from questbench.measure import bandwidth, busy

TRIALS = 15.0
"""Seconds of a cell beside its timing: filling caches, choosing the baselines' ways, stages."""


def card(config: KernelConfig) -> dict[str, str]:
    """What is about to run, for the card that is shown before."""
    query, kv, head_dim = heads(config)
    device = {}
    if config.device != "cpu":
        rate = units.rate(bandwidth.copy_bandwidth(config.device))
        device = {"device": f"{config.device}, copies {rate} (read and written), timed by {timing(config)}"}
    return {
        **device,
        "shape": f"{shape_name(config)}: {query} query heads, {kv} KV heads of {head_dim}",
        "lengths": ", ".join(map(units.echo_count, config.seq_lens)),
        "budgets": ", ".join(map(units.echo_count, config.budgets)),
        "methods": ", ".join(dict.fromkeys(["dense", *config.methods])) + f" against {_against(config)}",
        "cache": f"{config.cache}, pages of {', '.join(map(str, config.page_sizes))}, {', '.join(config.dtype)}",
        "cells": str(len(cells(config))),
        "duration": duration(_predicted(config).values(), config.time_limit),
        **({"warning": warning} if (warning := busy.caution_before()) else {}),
    }


def run(
    config: KernelConfig,
    *,
    finished: frozenset[str] | set[str] = frozenset(),
    stored: Any = (),
    progress: Progress | None = None,
) -> Iterator[Unit]:
    """Measure every cell that is not finished yet; one unit per cell."""
    from questbench.experiments.kernel.cell import measure

    del stored
    before = busy.caution_before()
    grid = cells(config)
    deadline, forecast = Deadline(config.time_limit), Forecast(_predicted(config))
    for done, cell in enumerate(grid):
        if cell.key in finished:
            forecast.skip(cell.key)
            continue
        if deadline.passed:
            # Under another key than the cell's own: --resume measures it.
            late = [
                dataclasses.replace(_failed(config, cell, name, CellError(deadline.reason)), status="skipped")
                for name in methods(config, cell)
            ]
            yield Unit(f"{cell.key}|not begun", late)
            continue
        if progress:
            progress(done, len(grid), f"{units.echo_count(cell.seq_len)}{forecast.words()}")
        refused = refusals_of(methods(config, cell), cell.page_size)
        try:
            records = measure(config, cell, refused, within(progress, done, len(grid)), before)
        except (MemoryError, CellError, OSError) as error:  # an anonymous mapping that fails is an OSError
            records = [_failed(config, cell, name, error) for name in methods(config, cell)]
        records += [_failed(config, cell, name, error) for name, error in refused.items()]
        forecast.finished(cell.key)
        yield Unit(cell.key, records)
        if progress:
            progress(done + 1, len(grid), f"{units.echo_count(cell.seq_len)}{forecast.words()}")


def _predicted(config: KernelConfig) -> dict[str, float]:
    """Seconds by cell: timing lasts as long as it may on most machines, and so do the trials around it."""
    return {cell.key: config.max_seconds + TRIALS for cell in cells(config)}


def _against(config: KernelConfig) -> str:
    """The baselines of this device."""
    from questbench.experiments.kernel.baselines import backend_baselines

    brought = [name for name, backend, _ in backend_baselines(config.device) if backend is not None]
    return " and ".join(["torch's fastest way", *brought])


def _failed(config: KernelConfig, cell: Cell, label: str, error: Exception) -> Any:
    method = methods(config, cell)[label]
    return unusable(
        "kernel",
        config.backend or config.device,
        method.name,
        params(config, cell, stage="total"),
        error,
        metric="latency",
        unit="s",
        seed=config.seed,
        method_args=method.arguments(cell.page_size),
    )
