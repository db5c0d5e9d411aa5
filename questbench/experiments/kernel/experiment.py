"""The kernel experiment as the engine runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from questbench import baselines, units
from questbench.experiments.engine import Experiment, Turn
from questbench.experiments.kernel.config import Cell, KernelConfig, cells, heads, methods, params, shape_name, timing
from questbench.records.schema import ResultRecord

TRIALS = 15.0
"""Seconds of a cell beside its timing: filling caches, choosing the baselines' ways, stages."""


def predicted(config: KernelConfig, grid: Sequence[Cell]) -> Mapping[str, float]:
    """Seconds by cell: timing lasts as long as it may on most machines, and so do the trials around it."""
    return {cell.key: config.max_seconds + TRIALS for cell in grid}


def measured(config: KernelConfig, cell: Cell, shared: None, turn: Turn) -> list[ResultRecord]:
    """One cell."""
    from questbench.experiments.kernel.cell import measure

    return measure(config, cell, turn)


KERNEL = Experiment(
    "kernel", "latency", cells, methods, params, predicted, lambda cell: None, lambda config, cell: None, measured
)
run = KERNEL.run


def card(config: KernelConfig) -> dict[str, str]:
    """What is about to run, for the card that is shown before."""
    query, kv, head_dim = heads(config)
    facts = {"shape": f"{shape_name(config)}: {query} query heads, {kv} KV heads of {head_dim}"}
    if config.device != "cpu":
        from questbench.measure import bandwidth

        rate = units.rate(bandwidth.copy_bandwidth(config.device))
        device = f"{config.device}, copies {rate} (read and written), timed by {timing(config)}"
        facts = {"device": device, **facts}
    pages = f"{config.cache}, pages of {', '.join(map(str, config.page_sizes))}, {', '.join(config.dtype)}"
    return KERNEL.card(config, facts, f" against {_against(config)}", {"cache": pages})


def _against(config: KernelConfig) -> str:
    """The baselines of this device."""
    found = [name for name, _, why in baselines.of("kernel", config.device) if why is None]
    return " and ".join(f"{name}'s fastest way" for name in found)
