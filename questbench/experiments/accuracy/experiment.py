"""The card of the accuracy experiment, what it reads, and its run: every sample that is not finished yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from questbench import units
from questbench.errors import CellError, QuestbenchError, UsageError
from questbench.experiments import costs
from questbench.experiments.accuracy.config import AccuracyConfig, Cell, Refused, Work, grid
from questbench.experiments.accuracy.inputs import data_files, template
from questbench.experiments.accuracy.protocol import PROTOCOLS
from questbench.experiments.accuracy.records import family, refusals, summary
from questbench.experiments.accuracy.rows import estimate
from questbench.experiments.costs import Forecast
from questbench.experiments.engine import Progress, Unit
from questbench.experiments.inputs import model_files
from questbench.experiments.setup import cost_model
from questbench.models import reach
from questbench.tasks._base import RequestTask
from questbench.tasks._data import DataTask

if TYPE_CHECKING:
    from questbench.experiments.accuracy.session import Session
    from questbench.records.schema import ResultRecord

TEXT_BYTES = 200
"""Of one token of a prompt while it is made: words, their joined text, token numbers as Python objects."""
PART = 2048
"""Tokens of a prompt that run through the model at once."""
FREE = frozenset({"samples"})
"""Settings that a resumed run may change: it goes on with more samples of the same series, or ends with fewer."""


def card(config: AccuracyConfig) -> dict[str, str]:
    """What is about to run, for the card that is shown before."""
    work = grid(config)
    layers = reach.sentence(config.model, dense_layers=config.dense_layers)
    tables = [one.task.table(one.length) for one, _, _ in work if isinstance(one.task, DataTask) and one.task.reads]
    files = [f"{table.name} ({len(table):,} rows, SHA-256 {table.sha256[:16]})" for table in tables]
    names = dict.fromkeys(cell.name for _, usable, _ in work for cell in usable)
    readers = dict.fromkeys(c.name for _, usable, _ in work for c in usable if c.method.prefill_key is not None)
    own = [f"{name} reads each prompt for itself" for name in readers]
    protocols = dict.fromkeys(one.protocol for one, _, _ in work)
    return {
        "model": config.model,
        **({"layers": layers} if layers else {}),
        "protocol": "; ".join(f"{name}: {PROTOCOLS[name]}" for name in protocols),
        "tasks": ", ".join(f"{one.spec} at {units.echo_count(one.length)}, n = {one.samples}" for one, _, _ in work),
        **({"data": ", ".join(dict.fromkeys(files))} if files else {}),
        "cells": f"{sum(len(usable) for _, usable, _ in work)} ({', '.join(names)})",
        "prefill": "; ".join(["dense, once per sample", *own, "evicting methods evict after it"]),
        "prompts": f"chat template {config.chat_template}; {config.batch} at a time; "
        "what the model cannot take is cut from the middle",
    }


def inputs(config: AccuracyConfig) -> dict[str, Any]:
    """What the run reads, by content: model, data, chat template.

    Raises:
        UsageError, PrerequisiteError: one of them cannot be used.
    """
    work = [(one.spec, one.task, one.length) for one, _, _ in grid(config)]
    where = {"online": config.online, "trust_remote_code": config.trust_remote_code}
    found = {
        "model": model_files(config.model, **where),
        "data": data_files(work),
        "chat_template": template(config.model, config.chat_template, **where),
    }
    return {name: part for name, part in found.items() if part}


def check_finished(config: AccuracyConfig, finished: frozenset[str] | set[str]) -> None:
    """Refuse what an earlier part of a run leaves no way for.

    Raises:
        UsageError: see :func:`_shown`.
    """
    for work, _, _ in grid(config):
        _shown(work, finished)


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
        progress: told once the model is there, and after every sample.

    Raises:
        UsageError, CellError: no sample of a task can be used.
    """
    from questbench.experiments.accuracy.requests import RequestSession
    from questbench.experiments.accuracy.session import Session

    work = grid(config)
    shown = {one.key: _shown(one, finished) for one, _, _ in work}
    corrected = f"all|holm|{config.samples}"  # p values corrected over everything that the run compared
    if {one.summary for one, _, _ in work} | {corrected} <= set(finished):
        return
    session = Session.open(config)
    small = {one.key: error for one, usable, _ in work if (error := _too_large(session, one, usable)) is not None}
    fitting = [one for one, _, _ in work if one.key not in small]
    total, done = sum(one.samples for one in fitting), 0

    def within(words: str) -> None:
        if progress and not done:  # later ones have the forecast to go by
            progress(0, total, f"the first sample: {words}")

    session.tell = within
    own = {one.key: RequestSession.of(session) if isinstance(one.task, RequestTask) else session for one in fitting}
    for one in fitting:
        _check_usable(own[one.key], one, finished)
    # A sample's cost is taken to grow with its length, and alike in all samples of a task.
    parts = [(one.spec, one.length) for one in fitting]
    counts = {part: one.samples for part, one in zip(parts, fitting, strict=True)}
    left = Forecast({part: part[1] for part in parts}, seconds=False, counts=counts, kind=lambda part: part[0])
    compared: list[ResultRecord] = []
    if progress:
        progress(done, total, "the first sample")
    for one, usable, refused in work:
        if one.key in small:
            out = [Refused(cell.method, cell.page_size, small[one.key]) for cell in usable]
            yield Unit(one.summary, refusals(session, one, out + refused))
            continue
        rows = {(str(row["unit"]), str(row["cell"])): dict(row) for row in stored if one.owns(str(row.get("unit", "")))}
        # What failed is tried again; what the sample has of other cells is kept.
        again = {index: _missing(one.unit(index), usable, rows) for index in _stored(one, finished)}
        skipped = sum(not lacking for lacking in again.values())
        done += skipped
        left.skip((one.spec, one.length), skipped)
        if progress and skipped:
            progress(done, total, estimate(one, rows.values(), usable))
        for indices, lacking in _batches(one.samples, again, tuple(usable), own[one.key]):
            for index, result in zip(indices, own[one.key].samples(one, lacking, indices), strict=True):
                key = one.unit(index)
                fresh = [{"unit": key, **row} for row in result.rows]
                rows |= {(key, str(row["cell"])): row for row in fresh}
                yield Unit(key, [], fresh, prefills=result.prefills)
                done += 1
                left.finished((one.spec, one.length))
                if progress:
                    progress(done, total, f"{estimate(one, rows.values(), usable)}{left.words()}")
        records = summary(session, one, usable, list(rows.values()), went_on=bool(shown[one.key]))
        compared += records
        if one.summary not in finished:
            yield Unit(one.summary, records + refusals(session, one, refused))
    if corrected not in finished:
        yield Unit(corrected, family(compared))


def _too_large(session: Session, work: Work, cells: Sequence[Cell]) -> CellError | None:
    """Why a length cannot run for want of memory, or ``None``.

    The text is made whole, also where the model cannot take all of it. Cells run one after the other; one with pages of
    another size than the prompt's holds a copy of the whole.
    """
    tokens = work.length if session.max_length is None else min(work.length, session.max_length)
    needs = {}
    for size in dict.fromkeys(cell.page_size for cell in cells):
        methods = {cell.key: cell.method for cell in cells if cell.page_size == size}
        model = cost_model(session.loaded.model, size)
        needs[size] = costs.need(model, methods, rows=1, length=tokens, part=min(tokens, PART))
    first, *others = needs.values()
    needed = TEXT_BYTES * work.length + max([first.largest, *(first.shared + other.largest for other in others)])
    hint = "Use a shorter --seq-len."
    try:
        costs.require(needed, session.config.device, beside="beside the weights", hint=hint)
    except CellError as error:
        return error
    return None


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
    rows = isinstance(work.task, RequestTask) or (isinstance(work.task, DataTask) and work.task.reads)
    for index in range(work.samples if rows else 1):
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
    return sorted(int(key.rpartition("|")[2]) for key in finished if work.owns(key))


def _shown(work: Work, finished: frozenset[str] | set[str]) -> list[int]:
    """Of which other numbers of samples results were shown before.

    Raises:
        UsageError: of more than are asked for now; what was shown does not go away.
    """
    before = f"{work.key}|summary|"
    found = [int(key.removeprefix(before)) for key in finished if key.startswith(before) and key != work.summary]
    if max(found, default=0) > work.samples:
        raise UsageError(
            f"This run has results of {max(found)} samples of {work.spec}, and {work.samples} are fewer.",
            f"Use --samples {max(found)} or more, or start a new run.",
        )
    return found


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
