"""Accuracy of every method on the same samples: one dense prefill per sample, forked for every cell.

    prefill the context dense (collecting the attention mass that any method needs)
    for each cell (method, budget, page size):  fork -> question and answer token by token through attention.decode

Yields one unit per sample and one summary per (task, length), so that a killed run loses one sample at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from questbench import registry
from questbench.errors import QuestbenchError, UsageError
from questbench.experiments._protocol import PROTOCOLS
from questbench.experiments._unit import Progress, Unit
from questbench.methods._base import Method
from questbench.methods._make import check_arguments, make
from questbench.tasks._base import Task
from questbench.tasks._data import DataTask, check_use
from questbench.tasks._make import expand, make_task


@dataclass(frozen=True)
class AccuracyConfig:
    """What to run; every field is an axis or a setting of the command line."""

    tasks: list[str]
    """Registered tasks, parameters behind a colon: ``kv:records=16``."""
    methods: list[str] = field(default_factory=lambda: ["dense", "quest", "h2o", "tova", "streaming_llm"])
    method_args: dict[str, str] = field(default_factory=dict)
    budgets: list[int] = field(default_factory=lambda: [256])
    seq_lens: list[int] | None = None
    """Tokens of the prompt; the task's own default if ``None``."""
    page_sizes: list[int] = field(default_factory=lambda: [16])
    protocol: str = "stepwise"
    samples: int | None = None
    """Samples per task and length; the task's own default if ``None``."""
    model: str = "constructed"
    dtype: str = "fp32"
    dense_layers: int | None = None
    """Leading dense layers, alike for all methods; the model's own default if ``None``."""
    device: str = "cpu"
    backend: str | None = None
    threads: int | None = None
    seed: int = 0
    online: bool = False
    trust_remote_code: bool = False
    data: dict[str, str] = field(default_factory=dict)
    """Where tasks on data find it: task -> file, folder or ``hf:owner/name``; ``*`` is for all."""


@dataclass(frozen=True)
class Cell:
    """One method with its parameters at one page size."""

    method: Method
    page_size: int
    name: str

    @property
    def key(self) -> str:
        """Names the cell in samples.jsonl."""
        return f"{self.name}|{self.page_size}|{sorted(self.method.arguments(self.page_size).items())}"


@dataclass(frozen=True)
class Refused:
    """A combination of the sweep that makes no sense; it becomes a failed record."""

    method: str
    budget: int
    page_size: int
    error: QuestbenchError


def cells(config: AccuracyConfig) -> tuple[list[Cell], list[Refused]]:
    """The grid over methods, budgets and page sizes. Dense has no budget and comes first, once."""
    usable = [Cell(make("dense", 0), config.page_sizes[0], "dense")]
    refused = []
    for page_size in config.page_sizes:
        for name in config.methods:
            if name == "dense":
                continue
            for budget in config.budgets:
                method = make(name, budget, config.method_args)
                try:
                    method.check(page_size)
                except UsageError as error:
                    refused.append(Refused(name, budget, page_size, error))
                else:
                    usable.append(Cell(method, page_size, name))
    return usable, refused


def grid(config: AccuracyConfig) -> list[tuple[str, Task, int, int]]:
    """(spec, task, length, samples) of every task and length of the run."""
    found = []
    for spec in expand(config.tasks):
        task = make_task(spec, config.data, online=config.online)
        for length in config.seq_lens or [task.default_length]:
            found.append((spec, task, length, task.samples(config.samples, length)))
    return found


def check(config: AccuracyConfig) -> None:
    """Refuse what no cell can satisfy, before anything is loaded.

    Raises:
        UsageError: unknown names, impossible values.
        PrerequisiteError: a missing backend or device.
    """
    from questbench.experiments._setup import check_machine

    if not config.tasks:
        raise UsageError("No task given.", f"Use --task with one of: {', '.join(registry.names('questbench.tasks'))}.")
    if config.samples is not None and config.samples < 1:
        raise UsageError(f"--samples {config.samples}: at least one sample is needed.", "Use --samples 50.")
    if config.protocol not in PROTOCOLS:
        raise registry.unknown("protocol", config.protocol, list(PROTOCOLS))
    if config.dense_layers is not None and config.dense_layers < 0:
        raise UsageError(f"--dense-layers {config.dense_layers} is negative.", "Use --dense-layers 0 or more.")
    check_arguments([name for name in config.methods if name != "dense"] or ["dense"], config.method_args)
    usable, refused = cells(config)
    if len(usable) == 1 and refused:
        raise refused[0].error
    tasks = [make_task(spec) for spec in expand(config.tasks)]
    check_use([(task.name, isinstance(task, DataTask)) for task in tasks], config.data)
    for _, task, length, _ in grid(config):
        if length < 1:
            raise UsageError(f"--seq-len {length} leaves no room for {task.name}.", "Use --seq-len 4k.")
    check_machine(config.device, config.backend, config.dtype, config.page_sizes, config.threads)


def card(config: AccuracyConfig) -> dict[str, str]:
    """What is about to run, for the card that is shown before."""
    from questbench import units

    usable, _ = cells(config)
    work = grid(config)
    tables = [task.table(length) for _, task, length, _ in work if isinstance(task, DataTask)]
    files = [f"{table.name} ({len(table):,} rows, SHA-256 {table.sha256[:16]})" for table in tables]
    return {
        "model": config.model,
        "protocol": f"{config.protocol}: {PROTOCOLS[config.protocol]}",
        "tasks": ", ".join(f"{spec} at {units.echo_count(length)}, n = {n}" for spec, _, length, n in work),
        **({"data": ", ".join(dict.fromkeys(files))} if files else {}),
        "cells": f"{len(usable) * len(work)} ({', '.join(dict.fromkeys(cell.name for cell in usable))})",
        "prefill": "dense, once per sample; evicting methods evict after it",
    }


def run(
    config: AccuracyConfig,
    *,
    finished: frozenset[str] | set[str] = frozenset(),
    stored: Sequence[Mapping[str, Any]] = (),
    progress: Progress | None = None,
) -> Iterator[Unit]:
    """Run what is not finished yet.

    Args:
        finished: keys of stored units, which are skipped.
        stored: rows of samples.jsonl of an earlier part of this run; summaries are made of them and of new ones.
        progress: told after every unit.
    """
    from questbench.experiments._accuracy_records import refusals, summary
    from questbench.experiments._accuracy_sample import Session

    usable, refused = cells(config)
    work = grid(config)
    total, done = sum(n for *_, n in work) + len(work), 0
    if all(f"{spec}|{length}|{config.protocol}|summary" in finished for spec, _, length, _ in work):
        return
    session = Session.open(config, usable)
    for spec, task, length, count in work:
        prefix = f"{spec}|{length}|{config.protocol}"
        rows = [dict(row) for row in stored if str(row.get("unit", "")).startswith(prefix + "|")]
        for index in range(count):
            key = f"{prefix}|{index:05d}"
            if key not in finished:
                fresh = session.sample(task, spec, index, length, unit=key)
                rows += fresh
                yield Unit(key, [], fresh, prefills=1)
            done += 1
            if progress:
                progress(done, total, _estimate(spec, rows, usable))
        key = f"{prefix}|summary"
        if key not in finished:
            records = summary(config, session, task, spec, length, count, usable, rows)
            yield Unit(key, records + refusals(config, session, spec, length, count, refused))
        done += 1
        if progress:
            progress(done, total, f"{spec} done")


def _estimate(spec: str, rows: Sequence[Mapping[str, Any]], usable: Sequence[Cell]) -> str:
    parts = []
    for cell in usable:
        scores = [row["score"] for row in rows if row["cell"] == cell.key]
        if scores and not math.isnan(sum(scores)):
            parts.append(f"{cell.name} {sum(scores) / len(scores):.0%}")
    return f"{spec}: " + ", ".join(parts)
