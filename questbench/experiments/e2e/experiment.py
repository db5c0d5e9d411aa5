"""The card of the end-to-end experiment, what it reads, and its run: every cell that is not finished yet."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from questbench import units
from questbench.errors import CellError, PrerequisiteError, UsageError
from questbench.experiments.costs import Deadline, Forecast, duration
from questbench.experiments.e2e.config import Cell, E2EConfig, cells, methods, params
from questbench.experiments.e2e.forecast import predicted
from questbench.experiments.engine import Progress, Unit, refusals_of, unusable, within
from questbench.experiments.inputs import model_files
from questbench.measure import busy
from questbench.models import reach

if TYPE_CHECKING:
    from questbench.experiments.e2e.session import Session


def inputs(config: E2EConfig) -> dict[str, Any]:
    """What the run reads, by content: the model's files."""
    files = model_files(config.model, online=config.online, trust_remote_code=config.trust_remote_code)
    return {"model": files} if files else {}


def card(config: E2EConfig) -> dict[str, str]:
    """What is about to run, for the card that is shown before."""
    layers = reach.sentence(config.model, config.layers, config.dense_layers)
    filled = "prefilled" if config.prefills else "filled with random entries: no prefill is timed"
    return {
        "model": config.model + (f", {config.layers} layers" if config.layers else ""),
        **({"layers": layers} if layers else {}),
        "lengths": ", ".join(map(units.echo_count, config.seq_lens)),
        "budgets": ", ".join(map(units.echo_count, config.budgets)),
        "methods": ", ".join(dict.fromkeys(["dense", *config.methods])),
        "caches": f"{filled}, pages of {', '.join(map(str, config.page_sizes))}, {', '.join(config.dtype)}",
        "weights": ", ".join(config.weights),
        "cells": str(len(cells(config))),
        "duration": duration(predicted(config, cells(config)).values(), config.time_limit),
        **({"warning": warning} if (warning := busy.caution_before()) else {}),
    }


def run(
    config: E2EConfig,
    *,
    finished: frozenset[str] | set[str] = frozenset(),
    stored: Any = (),
    progress: Progress | None = None,
) -> Iterator[Unit]:
    """Measure every cell that is not finished yet; one unit per cell."""
    from questbench.experiments.e2e.cell import measure
    from questbench.experiments.e2e.session import Session

    del stored
    grid = cells(config)
    deadline, forecast = Deadline(config.time_limit), Forecast(predicted(config, grid))
    before = busy.caution_before()
    session: Session | None = None
    opened: tuple[str, str, str] | None = None
    for done, cell in enumerate(grid):
        if cell.key in finished:
            forecast.skip(cell.key)
            continue
        if deadline.passed:
            # Under another key than the cell's own: --resume measures it.
            yield Unit(
                f"{cell.key}|not begun",
                [_missing(config, cell, name, deadline.reason) for name in methods(config, cell)],
            )
            continue
        if progress:
            progress(done, len(grid), f"{units.echo_count(cell.seq_len)}{forecast.words()}")
        refused = refusals_of(methods(config, cell), cell.page_size)
        try:
            if session is None or opened != cell.model:
                session = None
                gc.collect()  # the old model must be gone before the next one comes
                session, opened = Session.open(config, cell), cell.model
            tell = _with_forecast(within(progress, done, len(grid)), forecast)
            records = measure(config, cell, session, refused, tell, deadline, before)
        except (UsageError, PrerequisiteError) as error:
            # What no cell can do ends the run; a kind of weights that does not work here is a record like any other.
            if session is None and len({one.model for one in grid}) == 1:
                raise
            records = [_failed(config, cell, name, error) for name in methods(config, cell)]
        except (MemoryError, CellError, OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "out of memory" not in str(error).lower() + type(error).__name__:
                raise
            records = [_failed(config, cell, name, error) for name in methods(config, cell)]
        records += [_failed(config, cell, name, error) for name, error in refused.items()]
        gc.collect()
        forecast.finished(cell.key)
        yield Unit(cell.key, records)
        if progress:
            progress(done + 1, len(grid), f"{units.echo_count(cell.seq_len)}{forecast.words()}")


def _failed(config: E2EConfig, cell: Cell, label: str, error: Exception) -> Any:
    method = methods(config, cell)[label]
    return unusable(
        "e2e",
        config.backend or cell.device,
        method.name,
        params(config, cell, stage="total"),
        error,
        metric="tpot",
        unit="s",
        seed=config.seed,
        method_args=method.arguments(cell.page_size),
    )


def _missing(config: E2EConfig, cell: Cell, name: str, reason: str) -> Any:
    return dataclasses.replace(_failed(config, cell, name, CellError(reason)), status="skipped")


def _with_forecast(tell: Callable[[str], None], forecast: Forecast) -> Callable[[str], None]:
    return lambda text: tell(f"{text}{forecast.words()}")
