"""Attention kernels: one decode step of one layer, every method against dense and torch's best in the same rounds.

A cell is one (length, budget, page size, batch, dtype). Within a cell all methods, both baselines and a plain read of
memory are timed in interleaved rounds, so that ratios are paired and every row shows its distance to the limit.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from questbench import registry, units
from questbench.errors import CellError, UsageError
from questbench.experiments._unit import Progress, Unit, refusals_of, unusable, within
from questbench.methods._base import Method
from questbench.methods._make import PACKAGE, check_arguments, make_all, method_class

TIMINGS = ("graph", "events")
TRIALS = 15.0
"""Seconds of a cell beside its timing: filling caches, choosing the baselines' ways, stages."""


@dataclass(frozen=True)
class KernelConfig:
    """What to run; every field is an axis or a setting of the command line."""

    methods: list[str] = field(default_factory=lambda: ["dense", "quest", "h2o", "tova", "streaming_llm"])
    method_args: dict[str, str] = field(default_factory=dict)
    seq_lens: list[int] = field(default_factory=lambda: [32768])
    budgets: list[int] = field(default_factory=lambda: [2048])
    page_sizes: list[int] = field(default_factory=lambda: [16])
    shape: str = "llama-3.1-8b"
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    batch: list[int] = field(default_factory=lambda: [1])
    dtype: list[str] = field(default_factory=lambda: ["bf16"])
    threads: int | None = None
    device: str = "cpu"
    backend: str | None = None
    timing: str | None = None
    """On a GPU: ``graph`` (the default there) or ``events``. A CPU has its wall clock."""
    cache: str = "cold"
    rounds: int = 20
    """Least number of interleaved rounds."""
    max_seconds: float = 20.0
    """Longest measuring time of a cell, set-up apart."""
    time_limit: float | None = None
    """Seconds after which no further cell is begun."""
    compile_limit: float = 30.0
    """Longest time to compile torch's flex_attention, one of the baseline's ways; 0 leaves it out."""
    stages: bool = True
    """Break the step down into append, score, select, attend, evict."""
    seed: int = 0


@dataclass(frozen=True)
class Cell:
    """One point of the grid; all methods run in it."""

    seq_len: int
    budget: int
    page_size: int
    batch: int
    dtype: str

    @property
    def key(self) -> str:
        """Names the unit of work for resume."""
        return f"{self.seq_len}|{self.budget}|{self.page_size}|{self.batch}|{self.dtype}"


def cells(config: KernelConfig) -> list[Cell]:
    """The grid: the product of all axes."""
    return [
        Cell(seq_len, budget, page_size, batch, dtype)
        for seq_len in config.seq_lens
        for page_size in config.page_sizes
        for batch in config.batch
        for dtype in config.dtype
        for budget in config.budgets
    ]


def methods(config: KernelConfig, cell: Cell) -> dict[str, Method]:
    """The methods of a cell by label; dense is always one of them, since everything is measured against it."""
    found: dict[str, Method] = {}
    for name in dict.fromkeys(["dense", *config.methods]):
        found |= make_all(name, cell.budget, config.method_args)
    return found


def heads(config: KernelConfig) -> tuple[int, int, int]:
    """(query heads, KV heads, head dim): of the named shape, with what the flags replace.

    Raises:
        UsageError: unknown shape, or heads that do not divide.
    """
    from questbench.models.shapes import SHAPES

    if config.shape not in SHAPES:
        raise registry.unknown("shape", config.shape, sorted(SHAPES))
    shape = SHAPES[config.shape]
    query = config.heads or shape.heads
    kv = config.kv_heads or shape.kv_heads
    if query % kv:
        whose = "" if config.kv_heads else f" of {config.shape}"
        raise UsageError(
            f"{query} query heads cannot share the {kv} KV heads{whose} evenly.",
            f"Use --kv-heads with a divisor of {query}.",
        )
    head_dim = config.head_dim or shape.head_dim
    if head_dim % 2:
        raise UsageError(
            f"--head-dim {head_dim} is odd: rotary embeddings turn pairs of channels.", "Use an even one, such as 128."
        )
    return query, kv, head_dim


def check(config: KernelConfig) -> None:
    """Refuse what no cell can satisfy, before anything runs.

    Raises:
        UsageError: unknown names, impossible values.
        PrerequisiteError: a missing backend, compiler or device.
    """
    from questbench.experiments._setup import check_machine, load_ops

    positive: Mapping[str, Sequence[int | None]] = {
        "--seq-len": config.seq_lens,
        "--budget": config.budgets,
        "--batch": config.batch,
        "--heads": [config.heads],
        "--kv-heads": [config.kv_heads],
        "--head-dim": [config.head_dim],
        "--rounds": [config.rounds],
    }
    for flag, values in positive.items():
        for value in values:
            if value is not None and value < 1:
                raise UsageError(f"{flag} {value}: must be at least 1.", f"See: questbench kernel --help ({flag}).")
    if config.cache not in ("cold", "warm"):
        raise registry.unknown("cache state", config.cache, ["cold", "warm"])
    if config.timing not in (None, *TIMINGS):
        raise registry.unknown("timing", config.timing, list(TIMINGS))
    if config.timing is not None and config.device == "cpu":
        raise UsageError(f"--timing {config.timing} is for GPUs: a CPU has its wall clock.", "Leave --timing out.")
    heads(config)
    for name in config.methods:
        if method_class(name).yardstick:
            usable = [known for known, cls in registry.usable(PACKAGE, method_class).items() if not cls.yardstick]
            raise UsageError(
                f"'{name}' is a yardstick for accuracy: nobody would deploy it, so its speed means nothing.",
                f"Use --method with one of: {', '.join(usable)}.",
            )
    check_arguments(dict.fromkeys(["dense", *config.methods]), config.method_args)
    refusals = [refusals_of(methods(config, cell), cell.page_size) for cell in cells(config)]
    for name, error in refusals[0].items():
        if all(name in refused for refused in refusals):
            raise error
    for dtype in config.dtype:
        check_machine(config.device, config.backend, dtype, config.page_sizes, config.threads)
    ops, (query, kv, head_dim) = load_ops(config.device, config.backend), heads(config)
    for page_size in config.page_sizes:
        ops.limits.check(ops.name, query_heads=query, kv_heads=kv, head_dim=head_dim, page_size=page_size)


def _shape_name(config: KernelConfig) -> str:
    """The shape's name, or ``custom`` where flags have made another of it: a record must not carry a model's name."""
    from questbench.models.shapes import SHAPES

    named = SHAPES[config.shape]
    return config.shape if heads(config) == (named.heads, named.kv_heads, named.head_dim) else "custom"


def card(config: KernelConfig) -> dict[str, str]:
    """What is about to run, for the card that is shown before."""
    from questbench.experiments.costs import duration
    from questbench.measure import busy

    query, kv, head_dim = heads(config)
    device = {}
    if config.device != "cpu":
        from questbench.measure import bandwidth

        rate = units.rate(bandwidth.copy_bandwidth(config.device))
        device = {"device": f"{config.device}, copies {rate} (read and written), timed by {_timing(config)}"}
    return {
        **device,
        "shape": f"{_shape_name(config)}: {query} query heads, {kv} KV heads of {head_dim}",
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
    from questbench.experiments._kernel_cell import measure
    from questbench.experiments.costs import Deadline, Forecast
    from questbench.measure import busy

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


def params(config: KernelConfig, cell: Cell, **more: Any) -> dict[str, Any]:
    """The inputs that identify a record."""
    query, kv, head_dim = heads(config)
    return {
        "seq_len": cell.seq_len,
        "budget": cell.budget,
        "page_size": cell.page_size,
        "shape": _shape_name(config),
        "heads": query,
        "kv_heads": kv,
        "head_dim": head_dim,
        "batch": cell.batch,
        "dtype": cell.dtype,
        "threads": config.threads or os.cpu_count(),
        "device": config.device,
        **({} if config.device == "cpu" else {"timing": _timing(config)}),
        "cache": config.cache,
        **more,
    }


def _predicted(config: KernelConfig) -> dict[str, float]:
    """Seconds by cell: timing lasts as long as it may on most machines, and so do the trials around it."""
    return {cell.key: config.max_seconds + TRIALS for cell in cells(config)}


def _timing(config: KernelConfig) -> str:
    return config.timing or TIMINGS[0]


def _against(config: KernelConfig) -> str:
    """The baselines of this device."""
    from questbench.experiments._kernel_baselines import backend_baselines

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
