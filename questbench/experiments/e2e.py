"""End to end: what a user waits for, prefill and every token after it, with the whole model in the loop.

A cell is one point of the grid; all its methods run over forks of one prompt and are timed in interleaved rounds with a
plain read of memory. Cells that share device, dtype and weights share a loaded model.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from questbench import registry, units
from questbench.errors import CellError, PrerequisiteError, UsageError
from questbench.experiments._unit import Progress, Unit, refusals_of, unusable, within
from questbench.methods._base import Method
from questbench.methods._make import PACKAGE, check_arguments, make_all, method_class

if TYPE_CHECKING:
    from questbench.experiments._e2e_session import Session
    from questbench.experiments.costs import Forecast

FILLS = ("prefill", "random")
LOOPS = ("auto", "eager", "graph", "model")
RIVALS = ("static", "dynamic")
SELECT_BY = ("auto", "kv_head", "q_head")


@dataclass(frozen=True)
class E2EConfig:
    """What to run; every field is an axis or a setting of the command line."""

    methods: list[str] = field(default_factory=lambda: ["dense", "quest", "h2o", "tova", "streaming_llm"])
    method_args: dict[str, str] = field(default_factory=dict)
    model: str = "shape:sheared-llama-1.3b"
    layers: int | None = None
    """Only so many layers of a ``shape:`` model."""
    seq_lens: list[int] = field(default_factory=lambda: [4096])
    budgets: list[int] = field(default_factory=lambda: [1024])
    page_sizes: list[int] = field(default_factory=lambda: [16])
    batch: list[int] = field(default_factory=lambda: [1])
    dtype: list[str] = field(default_factory=lambda: ["bf16"])
    weights: list[str] = field(default_factory=lambda: ["full"])
    select_by: list[str] = field(default_factory=lambda: ["auto"])
    threads: list[int | None] = field(default_factory=lambda: [None])
    device: list[str] = field(default_factory=lambda: ["cpu"])
    backend: str | None = None
    quantise_head: bool = False
    """Quantise the output matrix too."""
    dense_layers: int | None = None
    cache_fill: str = "prefill"
    prefill_chunk: int = 2048
    prefill_rounds: int = 3
    loop: str = "auto"
    rivals: list[str] = field(default_factory=list)
    """Caches of transformers to time beside ours: ``static``, ``dynamic``."""
    tokens: list[int] = field(default_factory=lambda: [4, 16])
    """Lengths of the two generations whose difference is the slope."""
    rounds: int = 20
    max_seconds: float = 60.0
    """Longest timing of one part of a cell."""
    time_limit: float | None = None
    """Seconds after which the whole run ends with what is measured."""
    stages: bool = True
    seed: int = 0
    online: bool = False
    trust_remote_code: bool = False

    @property
    def prefills(self) -> bool:
        """Whether prompts run through the model, rather than caches being filled with random entries."""
        return self.cache_fill == "prefill"


@dataclass(frozen=True)
class Cell:
    """One point of the grid; all methods run in it."""

    device: str
    dtype: str
    weights: str
    threads: int | None
    seq_len: int
    page_size: int
    batch: int
    budget: int
    select_by: str

    @property
    def key(self) -> str:
        """Names the unit of work for resume."""
        return "|".join(map(str, vars(self).values()))

    @property
    def model(self) -> tuple[str, str, str]:
        """Cells that agree here share a loaded model."""
        return self.device, self.dtype, self.weights


def cells(config: E2EConfig) -> list[Cell]:
    """The grid: the product of all axes, models outermost."""
    axes = (config.device, config.dtype, config.weights, config.threads, config.seq_lens, config.page_sizes)
    return [Cell(*point) for point in itertools.product(*axes, config.batch, config.budgets, config.select_by)]


def methods(config: E2EConfig, cell: Cell) -> dict[str, Method]:
    """The methods of a cell by label; dense is always one of them, since everything is measured against it."""
    arguments = dict(config.method_args)
    if cell.select_by != "auto":
        arguments["select_by"] = cell.select_by
    found: dict[str, Method] = {}
    for name in dict.fromkeys(["dense", *config.methods]):
        found |= make_all(name, cell.budget, arguments)
    return found


def check(config: E2EConfig) -> None:
    """Refuse what no cell can satisfy, before anything runs.

    Raises:
        UsageError: unknown names, impossible values.
        PrerequisiteError: a missing backend, compiler, device or package.
    """
    from questbench.experiments._setup import check_machine
    from questbench.models import loading, quantise, shapes

    loading.check(config.model, config.layers)
    if config.model.startswith(loading.SHAPE):
        shape = shapes.named(config.model.removeprefix(loading.SHAPE))
        check_dense_layers(config, loading.DENSE_LAYERS, config.layers or shape.layers)
    positive = {
        "--seq-len": config.seq_lens,
        "--budget": config.budgets,
        "--batch": config.batch,
        "--prefill-chunk": [config.prefill_chunk],
        "--prefill-rounds": [config.prefill_rounds],
        "--rounds": [config.rounds],
        "--tokens": config.tokens,
    }
    for flag, values in positive.items():
        for value in values:
            if value < 1:
                raise UsageError(f"{flag} {value}: must be at least 1.", f"See: questbench e2e --help ({flag}).")
    if len(config.tokens) != 2 or config.tokens[0] >= config.tokens[1]:
        raise UsageError("--tokens takes two lengths, the shorter first.", "Use --tokens 4,16.")
    choices = {
        "cache fill": ([config.cache_fill], FILLS),
        "loop": ([config.loop], LOOPS),
        "cache of transformers": (config.rivals, RIVALS),
        "select-by": (config.select_by, SELECT_BY),
    }
    for what, (values_given, known) in choices.items():
        for name in values_given:
            if name not in known:
                raise registry.unknown(what, name, list(known))
    for name in config.methods:
        if method_class(name).yardstick:
            usable = [
                known_name for known_name, cls in registry.usable(PACKAGE, method_class).items() if not cls.yardstick
            ]
            raise UsageError(
                f"'{name}' is a yardstick for accuracy: nobody would deploy it, so its speed means nothing.",
                f"Use --method with one of: {', '.join(usable)}.",
            )
    check_arguments(dict.fromkeys(["dense", *config.methods]), config.method_args)
    grid = cells(config)
    refusals = [refusals_of(methods(config, cell), cell.page_size) for cell in grid]
    for name, error in refusals[0].items():
        if all(name in refused for refused in refusals):
            raise error
    for device, dtype, threads in itertools.product(config.device, config.dtype, config.threads):
        check_machine(device, config.backend, dtype, config.page_sizes, threads)
        for weights in config.weights:
            quantise.check(weights, device, dtype)
    if config.loop == "graph" and any(not device.startswith("cuda") for device in config.device):
        raise UsageError("--loop graph needs a CUDA device: CUDA graphs exist there only.", "Use --loop eager.")


def check_dense_layers(config: E2EConfig, default: int, layers: int) -> int:
    """The number of leading dense layers, of a model with ``layers`` of them and ``default`` dense ones.

    Raises:
        UsageError: no other layer is left.
    """
    dense = default if config.dense_layers is None else config.dense_layers
    if dense >= layers:
        raise UsageError(
            f"--dense-layers {dense} leaves no sparse layer: {config.model} has {layers} layers.",
            f"Use --dense-layers {layers - 1} or fewer.",
        )
    return dense


def inputs(config: E2EConfig) -> dict[str, Any]:
    """What the run reads, by content: the model's files."""
    from questbench.experiments._inputs import model_files

    files = model_files(config.model, online=config.online, trust_remote_code=config.trust_remote_code)
    return {"model": files} if files else {}


def card(config: E2EConfig) -> dict[str, str]:
    """What is about to run, for the card that is shown before."""
    from questbench.models import reach

    layers = reach.sentence(config.model, config.layers, config.dense_layers)
    from questbench.experiments._e2e_forecast import predicted
    from questbench.experiments.costs import duration
    from questbench.measure import busy

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
    from questbench.experiments._e2e_cell import measure
    from questbench.experiments._e2e_forecast import predicted
    from questbench.experiments._e2e_session import Session
    from questbench.experiments.costs import Deadline, Forecast
    from questbench.measure import busy

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


def params(config: E2EConfig, cell: Cell, **more: Any) -> dict[str, Any]:
    """The inputs that identify a record."""
    return {
        "seq_len": cell.seq_len,
        "budget": cell.budget,
        "page_size": cell.page_size,
        "model": config.model,
        **({"layers": config.layers} if config.layers else {}),
        "batch": cell.batch,
        "dtype": cell.dtype,
        "weights": cell.weights + ("+head" if config.quantise_head and cell.weights != "full" else ""),
        "select_by": cell.select_by,
        "threads": cell.threads or os.cpu_count(),
        "device": cell.device,
        "dense_layers": config.dense_layers,
        "cache_fill": config.cache_fill,
        "loop": config.loop,
        **more,
    }


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
