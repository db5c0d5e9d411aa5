"""What the end-to-end experiment runs: its settings, the grid they span and what identifies a record of it."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import Any

from questbench.experiments.grid import GridConfig, labelled
from questbench.flags import AXES, HOW, MACHINE, MODEL, at_least, choice, each, flag
from questbench.methods._base import Method

FILLS = ("prefill", "random")
LOOPS = ("auto", "eager", "graph", "model")
RIVALS = ("static", "dynamic")
SELECT_BY = ("auto", "kv_head", "q_head")


@dataclass(frozen=True)
class E2EConfig(GridConfig):
    """What to run."""

    seq_lens: list[int] = flag([4096], "--seq-len TOKENS", AXES, "Tokens of the prompt.", order=-1)
    budgets: list[int] = flag([1024])
    weights: list[str] = flag(["full"], "--weights NAMES", AXES, "full, int8, int4 (torchao, extra quant).")
    select_by: list[str] = flag(
        ["auto"],
        "--select-by NAMES",
        AXES,
        "Who has a list of pages: auto, kv_head, q_head.",
        each(choice("select-by", SELECT_BY)),
    )
    model: str = flag(
        "shape:sheared-llama-1.3b",
        "--model NAME",
        MODEL,
        "shape:NAME (random weights), constructed, needle, a hub id or a local folder: ls models.",
    )
    quantise_head: bool = flag(False, "--quantise-head", MODEL, "Quantise the output matrix too.")
    layers: int | None = flag(None, "--layers N", MODEL, "Use only this many layers of a shape.")
    dense_layers: int | None = flag(
        None, "--dense-layers N", MODEL, "Leading layers that stay dense (default: the model's own).", at_least(0)
    )
    online: bool = flag(False, "--online", MODEL, "Download models from the hub.")
    trust_remote_code: bool = flag(False, "--trust-remote-code", MODEL, "Run code of the model's repository.")
    cache_fill: str = flag(
        "prefill",
        "--cache-fill HOW",
        HOW,
        "prefill, or random: fill the caches without a prompt, for decode timing alone.",
        choice("cache fill", FILLS),
    )
    prefill_chunk: int = flag(
        2048, "--prefill-chunk TOKENS", HOW, "Tokens of the prompt that go through the model at once."
    )
    prefill_rounds: int = flag(3, "--prefill-rounds N", HOW, "Rounds of timed prefills.")
    loop: str = flag(
        "auto", "--loop NAME", HOW, "auto, eager, graph (CUDA), model (its own forward).", choice("loop", LOOPS)
    )
    rivals: list[str] = flag(
        [],
        "--transformers NAMES",
        HOW,
        "Also time transformers with these caches: static, dynamic.",
        each(choice("cache of transformers", RIVALS)),
    )
    tokens: list[int] = flag([4, 16], "--tokens N,M", HOW, "Lengths of the two generations that give the slope.")
    max_seconds: float = flag(60.0, "--max-seconds S", HOW, "Time limit for each measurement of a cell.", order=1)
    stages: bool = flag(True, "--stages/--no-stages", HOW, "Time the parts of a step apart.", order=2)
    threads: list[int | None] = flag([None], "--threads N", MACHINE, "CPU threads (default: all cores).")
    device: list[str] = flag(["cpu"], "--device NAMES", MACHINE, "cpu, cuda.")

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
