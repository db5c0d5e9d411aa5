"""The end-to-end experiment as the engine runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from questbench.experiments.e2e.config import Cell, E2EConfig, cells, methods, params
from questbench.experiments.e2e.forecast import predicted
from questbench.experiments.engine import Experiment, Turn
from questbench.experiments.inputs import model_files
from questbench.models import reach

if TYPE_CHECKING:
    from questbench.experiments.e2e.session import Session
    from questbench.records.schema import ResultRecord


def opened(config: E2EConfig, cell: Cell) -> Session:
    """The loaded model of a cell."""
    from questbench.experiments.e2e.session import Session

    return Session.open(config, cell)


def measured(config: E2EConfig, cell: Cell, session: Session, turn: Turn) -> list[ResultRecord]:
    """One cell."""
    from questbench.experiments.e2e.cell import measure

    return measure(config, cell, session, turn)


E2E = Experiment("e2e", "tpot", cells, methods, params, predicted, lambda cell: cell.model, opened, measured)
run = E2E.run


def inputs(config: E2EConfig) -> dict[str, Any]:
    """What the run reads, by content: the model's files."""
    files = model_files(config.model, online=config.online, trust_remote_code=config.trust_remote_code)
    return {"model": files} if files else {}


def card(config: E2EConfig) -> dict[str, str]:
    """What is about to run, for the card that is shown before."""
    layers = reach.sentence(config.model, config.layers, config.dense_layers)
    filled = "prefilled" if config.prefills else "filled with random entries: no prefill is timed"
    pages = f"{filled}, pages of {', '.join(map(str, config.page_sizes))}, {', '.join(config.dtype)}"
    model = {"model": config.model + (f", {config.layers} layers" if config.layers else "")}
    facts = {**model, **({"layers": layers} if layers else {})}
    return E2E.card(config, facts, "", {"caches": pages, "weights": ", ".join(config.weights)})
