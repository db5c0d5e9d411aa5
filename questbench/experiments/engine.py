"""The engine of all experiments: a grid of cells, each measured once, whatever happens to its neighbours.

Refusals, failures, memory, the time limit, resuming, progress and the forecast are dealt with here and nowhere else. An
experiment says what its cells are, which of them share a loaded model, and how one is measured.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from questbench import units
from questbench.errors import CellError, PrerequisiteError, QuestbenchError, SkipCell, UsageError
from questbench.experiments import failures
from questbench.experiments.costs import Deadline, Forecast, OutOfTime, duration
from questbench.experiments.grid import GridConfig, refusals_of
from questbench.measure import busy
from questbench.measure.memory import out_of_memory
from questbench.methods._base import Method
from questbench.records.schema import Kind, ResultRecord

Progress = Callable[[int, int, str], None]
"""``progress(done, total, estimate)``: units done, units in all, the current estimate in words."""


@dataclass(frozen=True)
class Unit:
    """Finished work: a cell of all its methods, or one sample or one summary in ``accuracy``."""

    key: str
    """Known before the unit runs; ``--resume`` skips units whose key is stored."""
    records: list[ResultRecord]
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Rows for samples.jsonl."""
    prefills: int = 0
    """Dense prefills that this unit made."""


class Cell(Protocol):
    """One point of a grid; all methods run in it."""

    @property
    def key(self) -> str:
        """Names the unit of work for resume."""

    @property
    def seq_len(self) -> int:
        """Tokens of the text."""

    @property
    def page_size(self) -> int:
        """Entries of a page."""


C = TypeVar("C", bound=Cell)
G = TypeVar("G", bound=GridConfig)
Shared = TypeVar("Shared")


@dataclass(frozen=True)
class Turn:
    """What the engine tells a measurement."""

    refused: Mapping[str, QuestbenchError]
    """Methods that are left out, by label; the engine makes their records."""
    tell: Callable[[str], None]
    """Shows how far the cell is."""
    deadline: Deadline
    """Of the whole run."""
    before: str | None
    """A warning about the machine as it was before the run."""


@dataclass(frozen=True)
class Experiment(Generic[G, C, Shared]):
    """A grid, and how one cell of it is measured."""

    kind: Kind
    metric: str
    """In seconds; the record of a cell that cannot run has no value of it."""
    cells: Callable[[G], Sequence[C]]
    """In the order in which they run."""
    methods: Callable[[G, C], Mapping[str, Method]]
    """The methods of a cell by label."""
    params: Callable[[G, C], dict[str, Any]]
    """The inputs that identify a record, ``device`` among them."""
    predicted: Callable[[G, Sequence[C]], Mapping[str, float]]
    """Seconds by cell; 0 where nothing is known."""
    group: Callable[[C], Hashable]
    """Cells that agree here share what ``open`` returns: a loaded model."""
    open: Callable[[G, C], Shared]
    """Raises UsageError or PrerequisiteError where no cell of the group can run."""
    measure: Callable[[G, C, Shared, Turn], list[ResultRecord]]
    """The records of one cell; raises CellError where it cannot run."""

    def run(
        self,
        config: G,
        *,
        finished: frozenset[str] | set[str] = frozenset(),
        stored: Any = (),
        progress: Progress | None = None,
    ) -> Iterator[Unit]:
        """Measure every cell that is not finished yet; one unit per cell."""
        del stored
        before, grid = busy.caution_before(), self.cells(config)
        deadline, forecast = Deadline(config.time_limit), Forecast(self.predicted(config, grid))
        opened: dict[Hashable, Shared] = {}
        for done, cell in enumerate(grid):
            if cell.key in finished:
                forecast.skip(cell.key)
                continue
            if deadline.passed:
                # Under another key than the cell's own: --resume measures it.
                yield self._failed(config, cell, OutOfTime(deadline.reason), "|not begun")
                continue

            def tell(text: str, done: int = done) -> None:
                if progress:
                    progress(done, len(grid), f"{text}{forecast.words()}")

            tell(units.echo_count(cell.seq_len))
            refused = refusals_of(self.methods(config, cell), cell.page_size)
            try:
                if (group := self.group(cell)) not in opened:
                    opened.clear()
                    gc.collect()  # the old model must be gone before the next one comes
                    opened[group] = self.open(config, cell)
                unit = Unit(cell.key, self.measure(config, cell, opened[group], Turn(refused, tell, deadline, before)))
            except (UsageError, PrerequisiteError) as error:
                # What no cell can do ends the run; weights that do not work here are a record like any other.
                if not opened and len(set(map(self.group, grid))) == 1:
                    raise
                unit = self._failed(config, cell, error)
            except (CellError, SkipCell) as error:
                unit = self._failed(config, cell, error)
            except Exception as error:
                if out_of_memory(error):
                    unit = self._failed(config, cell, failures.no_memory(error, self._device(config, cell)))
                elif isinstance(error, OSError):
                    unit = self._failed(config, cell, error)
                else:
                    raise
            unit.records.extend(self.unusable(config, cell, name, error) for name, error in refused.items())
            failures.give_back(self._device(config, cell))
            forecast.finished(cell.key)
            yield unit
            tell(units.echo_count(cell.seq_len), done + 1)

    def card(self, config: G, before: Mapping[str, str], against: str, behind: Mapping[str, str]) -> dict[str, str]:
        """What is about to run: the experiment's own facts around those of every grid."""
        grid = self.cells(config)
        return {
            **before,
            "lengths": ", ".join(map(units.echo_count, config.seq_lens)),
            "budgets": ", ".join(map(units.echo_count, config.budgets)),
            "methods": ", ".join(dict.fromkeys(["dense", *config.methods])) + against,
            **behind,
            "cells": str(len(grid)),
            "duration": duration(self.predicted(config, grid).values(), config.time_limit),
            **({"warning": warning} if (warning := busy.caution_before()) else {}),
        }

    def unusable(self, config: G, cell: C, label: str, error: Exception) -> ResultRecord:
        """The record of a method in a cell that cannot run."""
        method = self.methods(config, cell)[label]
        return unusable(
            self.kind,
            config.backend or self._device(config, cell),
            method.name,
            {**self.params(config, cell), "stage": "total"},
            error,
            metric=self.metric,
            unit="s",
            seed=config.seed,
            method_args=method.arguments(cell.page_size),
        )

    def _failed(self, config: G, cell: C, error: Exception, mark: str = "") -> Unit:
        return Unit(cell.key + mark, [self.unusable(config, cell, name, error) for name in self.methods(config, cell)])

    def _device(self, config: G, cell: C) -> str:
        return str(self.params(config, cell)["device"])


def unusable(
    kind: Kind,
    backend: str,
    method: str,
    params: dict[str, Any],
    error: Exception,
    *,
    metric: str,
    unit: str,
    seed: int,
    method_args: Mapping[str, Any] | None = None,
) -> ResultRecord:
    """The record of a cell that cannot run: the reason instead of a value. One that makes no sense is skipped.

    Args:
        method_args: they belong to the cell's identity, by which a later success replaces this record.
    """
    return ResultRecord(
        run="",
        kind=kind,
        status="skipped" if isinstance(error, SkipCell) else "failed",
        method=method,
        method_args=dict(method_args or {}),
        backend=backend,
        params=params,
        metric=metric,
        unit=unit,
        value=None,
        reason=failures.told(error),
        seed=seed,
    )
