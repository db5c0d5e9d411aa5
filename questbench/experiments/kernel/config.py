"""What the kernel experiment runs: its settings, the grid they span and what identifies a record of it."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import Any

from questbench import registry
from questbench.errors import UsageError
from questbench.experiments.grid import GridConfig, OneMachine, labelled
from questbench.flags import ATTENTION, HOW, choice, flag, not_negative
from questbench.methods._base import Method
from questbench.models.shapes import SHAPES

TIMINGS = ("graph", "events")
CACHES = ("cold", "warm")


@dataclass(frozen=True)
class KernelConfig(OneMachine, GridConfig):
    """What to run."""

    shape: str = flag("llama-3.1-8b", "--shape NAME", ATTENTION, "Model whose attention is timed (see: ls models).")
    heads: int | None = flag(None, "--heads N", ATTENTION, "Query heads, instead of the shape's.")
    kv_heads: int | None = flag(None, "--kv-heads N", ATTENTION, "KV heads, instead of the shape's.")
    head_dim: int | None = flag(None, "--head-dim N", ATTENTION, "Head size, instead of the shape's.")
    cache: str = flag(
        "cold",
        "--cache STATE",
        HOW,
        "cold: keys and values come from memory; warm: from the processor's caches.",
        choice("cache state", CACHES),
    )
    timing: str | None = flag(
        None,
        "--timing WAY",
        HOW,
        "On a GPU: graph (default: a CUDA graph of many steps) or events (eager).",
        choice("timing", TIMINGS),
    )
    compile_limit: float = flag(
        30.0,
        "--compile-limit S",
        HOW,
        "Longest time to compile torch's flex_attention; 0 leaves it out.",
        not_negative,
        order=1,
    )


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
        return "|".join(map(str, vars(self).values()))


def cells(config: KernelConfig) -> list[Cell]:
    """The grid: the product of all axes."""
    axes = config.seq_lens, config.page_sizes, config.batch, config.dtype, config.budgets
    return [Cell(length, budget, size, rows, dtype) for length, size, rows, dtype, budget in itertools.product(*axes)]


def methods(config: KernelConfig, cell: Cell) -> dict[str, Method]:
    """The methods of a cell by label."""
    return labelled(config.methods, cell.budget, config.method_args)


def heads(config: KernelConfig) -> tuple[int, int, int]:
    """(query heads, KV heads, head dim): of the named shape, with what the flags replace.

    Raises:
        UsageError: unknown shape, or heads that do not divide.
    """
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


def shape_name(config: KernelConfig) -> str:
    """The shape's name, or ``custom`` where flags have made another of it: a record must not carry a model's name."""
    named = SHAPES[config.shape]
    return config.shape if heads(config) == (named.heads, named.kv_heads, named.head_dim) else "custom"


def params(config: KernelConfig, cell: Cell) -> dict[str, Any]:
    """The inputs that identify a record."""
    query, kv, head_dim = heads(config)
    return {
        "seq_len": cell.seq_len,
        "budget": cell.budget,
        "page_size": cell.page_size,
        "shape": shape_name(config),
        "heads": query,
        "kv_heads": kv,
        "head_dim": head_dim,
        "batch": cell.batch,
        "dtype": cell.dtype,
        "threads": config.threads or os.cpu_count(),
        "device": config.device,
        **({} if config.device == "cpu" else {"timing": timing(config)}),
        "cache": config.cache,
    }


def timing(config: KernelConfig) -> str:
    """How a GPU is timed."""
    return config.timing or TIMINGS[0]
