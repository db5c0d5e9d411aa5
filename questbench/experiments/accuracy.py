"""Accuracy of every method on the same samples: one dense prefill per sample, forked for every cell.

    prefill the context dense (collecting the attention mass that any method needs)
    for each cell (method, budget, page size):  fork -> question and answer token by token through attention.decode

Yields one unit per sample, a summary per (task, length) and at last the p values corrected over the whole grid, so that
a killed run loses one batch of samples at most.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from questbench import registry
from questbench.errors import CellError, QuestbenchError, SkipCell, UsageError
from questbench.experiments._accuracy_chat import MODES
from questbench.experiments._protocol import PROTOCOLS
from questbench.experiments._unit import Progress, Unit
from questbench.measure import lossless
from questbench.methods._base import Method
from questbench.methods._make import check_arguments, make, make_all
from questbench.tasks._base import StreamTask, Task
from questbench.tasks._data import DataTask, check_use
from questbench.tasks._make import expand, make_task

if TYPE_CHECKING:
    from questbench.experiments._accuracy_sample import Session
    from questbench.records.schema import ResultRecord

SAMPLES_MOST = 1_000_000
"""Samples of one task at one length."""
FAMILY = "all|holm"
"""Key of the last unit: p values corrected over everything that the run compared."""


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
    protocol: str | None = None
    """When the method becomes active; the task's own protocol if ``None``."""
    samples: int | None = None
    """Samples per task and length; the task's own default if ``None``."""
    batch: int = 1
    """Samples that run together; less after one did not fit into memory. In bf16 and fp16 it can change an answer."""
    chat_template: str = "auto"
    """Whether prompts go into the tokenizer's chat template: ``auto``, ``on``, ``off``."""
    margin: float = lossless.MARGIN
    """Largest loss of score that still counts as lossless."""
    model: str = "constructed"
    dtype: str = "fp32"
    dense_layers: int | None = None
    """Leading dense layers, alike for all methods; the model's own default if ``None``."""
    device: str = "cpu"
    backend: str | None = None
    threads: int | None = None
    seed: int = 0
    log_samples: bool = False
    """Keep prompts and gold answers in samples.jsonl too, not only the completions."""
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

    @functools.cached_property
    def key(self) -> str:
        """Names the cell in samples.jsonl."""
        return f"{self.name}|{self.page_size}|{sorted(self.method.arguments(self.page_size).items())}"


@dataclass(frozen=True)
class Refused:
    """A combination of the sweep that makes no sense; it becomes a failed or, for a ``SkipCell``, a skipped record."""

    method: Method
    page_size: int
    error: QuestbenchError


@dataclass(frozen=True)
class Work:
    """One task at one length."""

    spec: str
    """As the user wrote it: ``kv:records=16``."""
    task: Task
    length: int
    samples: int
    protocol: str
    behind: int = 0
    """Stream: the largest budget of the cells, up to which every method sees everything."""

    @property
    def key(self) -> str:
        """Begins the keys of its units."""
        return f"{self.spec}|{self.length}|{self.protocol}"

    def unit(self, index: int) -> str:
        """Key of a sample."""
        return f"{self.key}|{index:05d}"


def cells(config: AccuracyConfig) -> tuple[list[Cell], list[Refused]]:
    """The grid over methods, budgets and page sizes. Dense has no budget and comes first, once."""
    # The smallest, not the first: the order of a sweep is no part of its records.
    usable = [Cell(make("dense", 0), min(config.page_sizes), "dense")]
    refused = []
    for page_size in config.page_sizes:
        for name in config.methods:
            if name == "dense":
                continue
            for budget in config.budgets:
                for method in make_all(name, budget, config.method_args).values():
                    try:
                        method.check(page_size)
                    except UsageError as error:
                        refused.append(Refused(method, page_size, error))
                    else:
                        usable.append(Cell(method, page_size, name))
    return usable, refused


def grid(config: AccuracyConfig) -> list[tuple[Work, list[Cell], list[Refused]]]:
    """Every task at every length, with the cells that can run on it and those that cannot.

    Raises:
        UsageError: a protocol that a task does not have.
    """
    usable, refused = cells(config)
    found = []
    for spec in expand(config.tasks):
        task = make_task(spec, config.data, online=config.online)
        protocol = config.protocol or task.protocols[0]
        if protocol not in task.protocols:
            raise UsageError(
                f"{task.name} has no protocol '{protocol}'; it has: {', '.join(task.protocols)}.",
                f"Use --protocol {task.protocols[0]}, or leave it out.",
            )
        for length in config.seq_lens or [task.default_length]:
            work = Work(spec, task, length, task.samples(config.samples, length), protocol)
            found.append(_streamed(work, usable, refused) if isinstance(task, StreamTask) else (work, usable, refused))
    return found


def _streamed(work: Work, usable: list[Cell], refused: list[Refused]) -> tuple[Work, list[Cell], list[Refused]]:
    """The cells whose budget leaves a window of the text behind it; the others have nothing to show there."""
    assert isinstance(work.task, StreamTask)
    # Texts have 95 % or more of their length.
    most = int(0.95 * work.length) - work.task.window
    fitting = [cell for cell in usable if not cell.method.budgeted or cell.method.budget <= most]
    skipped = [
        Refused(
            cell.method,
            cell.page_size,
            SkipCell(
                f"Budget {cell.method.budget} leaves no {work.task.window} tokens of {work.length} behind it, and up "
                "to the budget every method is dense.",
                "Use a longer --seq-len.",
            ),
        )
        for cell in usable
        if cell not in fitting
    ]
    behind = max((cell.method.budget for cell in fitting if cell.method.budgeted), default=0)
    return replace(work, behind=behind), fitting, refused + skipped


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
    if config.samples is not None and config.samples > SAMPLES_MOST:
        raise UsageError(
            f"--samples {config.samples:,}: a run holds its rows in memory, {SAMPLES_MOST:,} samples of them at most.",
            "Use --samples 1000, or several runs with other seeds.",
        )
    if config.batch < 1:
        raise UsageError(f"--batch {config.batch}: at least one sample runs at a time.", "Use --batch 1.")
    if config.protocol is not None and config.protocol not in PROTOCOLS:
        raise registry.unknown("protocol", config.protocol, list(PROTOCOLS))
    if config.chat_template not in MODES:
        raise registry.unknown("chat template mode", config.chat_template, list(MODES))
    if not 0 < config.margin < 1:
        raise UsageError(f"--margin {config.margin:g} is not between 0 and 1.", "Use --margin 0.02 for 2 points.")
    if config.dense_layers is not None and config.dense_layers < 0:
        raise UsageError(f"--dense-layers {config.dense_layers} is negative.", "Use --dense-layers 0 or more.")
    check_arguments([name for name in config.methods if name != "dense"] or ["dense"], config.method_args)
    usable, refused = cells(config)
    if len(usable) == 1 and refused:
        raise refused[0].error
    tasks = [make_task(spec) for spec in expand(config.tasks)]
    check_use([(task.name, isinstance(task, DataTask)) for task in tasks], config.data)
    for work, _, _ in grid(config):
        if work.length < 1:
            raise UsageError(f"--seq-len {work.length} leaves no room for {work.task.name}.", "Use --seq-len 4k.")
    check_machine(config.device, config.backend, config.dtype, config.page_sizes, config.threads)


def card(config: AccuracyConfig) -> dict[str, str]:
    """What is about to run, for the card that is shown before."""
    from questbench import units
    from questbench.models import reach

    work = grid(config)
    layers = reach.sentence(config.model, dense_layers=config.dense_layers)
    tables = [one.task.table(one.length) for one, _, _ in work if isinstance(one.task, DataTask)]
    files = [f"{table.name} ({len(table):,} rows, SHA-256 {table.sha256[:16]})" for table in tables]
    names = dict.fromkeys(cell.name for _, usable, _ in work for cell in usable)
    protocols = dict.fromkeys(one.protocol for one, _, _ in work)
    return {
        "model": config.model,
        **({"layers": layers} if layers else {}),
        "protocol": "; ".join(f"{name}: {PROTOCOLS[name]}" for name in protocols),
        "tasks": ", ".join(f"{one.spec} at {units.echo_count(one.length)}, n = {one.samples}" for one, _, _ in work),
        **({"data": ", ".join(dict.fromkeys(files))} if files else {}),
        "cells": f"{sum(len(usable) for _, usable, _ in work)} ({', '.join(names)})",
        "prefill": "dense, once per sample; evicting methods evict after it",
        "prompts": f"chat template {config.chat_template}; {config.batch} at a time; "
        "what the model cannot take is cut from the middle",
    }


def inputs(config: AccuracyConfig) -> dict[str, Any]:
    """What the run reads, by content: model, data, chat template.

    Raises:
        UsageError, PrerequisiteError: one of them cannot be used.
    """
    from questbench.experiments._inputs import accuracy

    work = [(one.spec, one.task, one.length) for one, _, _ in grid(config)]
    where = {"online": config.online, "trust_remote_code": config.trust_remote_code}
    return accuracy(config.model, config.chat_template, work, **where)


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

    Raises:
        UsageError, CellError: no sample of a task can be used.
    """
    from questbench.experiments._accuracy_memory import check as check_memory
    from questbench.experiments._accuracy_records import family, refusals, summary
    from questbench.experiments._accuracy_rows import estimate
    from questbench.experiments._accuracy_sample import Session
    from questbench.experiments._time_left import TimeLeft

    work = grid(config)
    if {f"{one.key}|summary" for one, _, _ in work} | {FAMILY} <= set(finished):
        return
    session = Session.open(config)
    small = {one.key: error for one, usable, _ in work if (error := check_memory(session, one, usable)) is not None}
    fitting = [one for one, _, _ in work if one.key not in small]
    total, done = sum(one.samples + 1 for one in fitting), 0
    for one in fitting:
        _check_usable(session, one, finished)
    left = TimeLeft([(one.spec, one.length, one.samples) for one in fitting])
    compared: list[ResultRecord] = []
    for one, usable, refused in work:
        if one.key in small:
            out = [Refused(cell.method, cell.page_size, small[one.key]) for cell in usable]
            yield Unit(f"{one.key}|summary", refusals(session, one, out + refused))
            continue
        rows = {
            (str(row["unit"]), str(row["cell"])): dict(row)
            for row in stored
            if str(row.get("unit", "")).startswith(one.key + "|")
        }
        # What failed is tried again; what the sample has of other cells is kept.
        again = {index: _missing(one.unit(index), usable, rows) for index in _stored(one, finished)}
        skipped = sum(not lacking for lacking in again.values())
        done += skipped
        left.skip(one.spec, one.length, skipped)
        for indices, lacking in _batches(one.samples, again, tuple(usable), session):
            for index, result in zip(indices, session.samples(one, lacking, indices), strict=True):
                key = one.unit(index)
                fresh = [{"unit": key, **row} for row in result.rows]
                rows |= {(key, str(row["cell"])): row for row in fresh}
                yield Unit(key, [], fresh, prefills=result.prefills)
                done += 1
                left.finished(one.spec, one.length)
                if progress:
                    progress(done, total, f"{estimate(one.spec, rows.values(), usable)}{left.words()}")
        records = summary(session, one, usable, list(rows.values()))
        compared += records
        if f"{one.key}|summary" not in finished:
            yield Unit(f"{one.key}|summary", records + refusals(session, one, refused))
        done += 1
        if progress:
            progress(done, total, f"{one.spec} done{left.words()}")
    if FAMILY not in finished:
        yield Unit(FAMILY, family(compared))


def _check_usable(session: Session, work: Work, finished: frozenset[str] | set[str]) -> None:
    """Find what cannot be used before hours were spent on what stands in front of it.

    Rows of data differ: one that does not fit is left out later, and only where none fits there is nothing to run.
    What cannot be made of a generated text cannot be made of the next one either.

    Raises:
        UsageError, CellError: why the first sample cannot be used, where no sample can.
    """
    if any(work.unit(index) in finished for index in range(min(work.samples, len(finished)))):
        return
    first: QuestbenchError | None = None
    for index in range(work.samples if isinstance(work.task, DataTask) else 1):
        try:
            session.prepare(work, index)
        except (UsageError, CellError) as error:
            first = first or error
        else:
            return
    if first is not None:
        raise first


def _stored(work: Work, finished: frozenset[str] | set[str]) -> list[int]:
    """Numbers of the samples that an earlier part of this run has stored."""
    before = work.key + "|"
    numbers = [key.removeprefix(before) for key in finished if key.startswith(before)]
    return sorted(int(number) for number in numbers if number.isdecimal() and int(number) < work.samples)


def _missing(unit: str, usable: Sequence[Cell], rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> tuple[Cell, ...]:
    """The cells that a stored sample still has to go through."""
    return tuple(cell for cell in usable if "error" in rows.get((unit, cell.key), {"error": "not stored"}))


def _batches(
    samples: int, again: Mapping[int, tuple[Cell, ...]], usable: tuple[Cell, ...], session: Session
) -> Iterator[tuple[list[int], tuple[Cell, ...]]]:
    """Samples that run together: neighbours that need the same cells, as many as the session takes at a time.

    Args:
        samples: of all; nothing is listed ahead, however many they are.
        again: what stored samples lack; all others need all of ``usable``.
    """
    indices: list[int] = []
    together: tuple[Cell, ...] = ()
    for index in range(samples):
        lacking = again.get(index, usable)
        if indices and lacking and (lacking != together or len(indices) >= session.batch):
            yield indices, together
            indices = []
        if lacking:
            indices, together = [*indices, index], lacking
    if indices:
        yield indices, together
