"""What the end-to-end experiment runs: its settings, the grid they span and what identifies a record of it."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from typing import Any

from questbench.experiments.grid import GridConfig, labelled
from questbench.methods._base import Method

FILLS = ("prefill", "random")
LOOPS = ("auto", "eager", "graph", "model")
RIVALS = ("static", "dynamic")
SELECT_BY = ("auto", "kv_head", "q_head")


@dataclass(frozen=True)
class E2EConfig(GridConfig):
    """What to run; every field is an axis or a setting of the command line."""

    seq_lens: list[int] = field(default_factory=lambda: [4096])
    budgets: list[int] = field(default_factory=lambda: [1024])
    max_seconds: float = 60.0
    model: str = "shape:sheared-llama-1.3b"
    layers: int | None = None
    """Only so many layers of a ``shape:`` model."""
    weights: list[str] = field(default_factory=lambda: ["full"])
    select_by: list[str] = field(default_factory=lambda: ["auto"])
    threads: list[int | None] = field(default_factory=lambda: [None])
    device: list[str] = field(default_factory=lambda: ["cpu"])
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
    """The methods of a cell by label."""
    chosen = {} if cell.select_by == "auto" else {"select_by": cell.select_by}
    return labelled(config.methods, cell.budget, {**config.method_args, **chosen})


def params(config: E2EConfig, cell: Cell) -> dict[str, Any]:
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
    }
