"""What the experiments over a grid have in common: settings, and the methods of a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from questbench.errors import QuestbenchError, UsageError
from questbench.methods._base import Method
from questbench.methods._make import make_all


@dataclass(frozen=True)
class GridConfig:
    """Settings and axes of every experiment over a grid; every field is a flag of the command line."""

    methods: list[str] = field(default_factory=lambda: ["dense", "quest", "h2o", "tova", "streaming_llm"])
    method_args: dict[str, str] = field(default_factory=dict)
    seq_lens: list[int] = field(default_factory=lambda: [32768])
    budgets: list[int] = field(default_factory=lambda: [2048])
    page_sizes: list[int] = field(default_factory=lambda: [16])
    batch: list[int] = field(default_factory=lambda: [1])
    dtype: list[str] = field(default_factory=lambda: ["bf16"])
    backend: str | None = None
    rounds: int = 20
    """Least number of interleaved rounds."""
    max_seconds: float = 20.0
    """Longest measuring time of a part of a cell, set-up apart."""
    time_limit: float | None = None
    """Seconds after which no further cell is begun, and the rest of a cell is left out where that is possible."""
    stages: bool = True
    """Take the step apart: append, score, select, attend, evict and what is around them."""
    seed: int = 0


def labelled(names: Sequence[str], budget: int, arguments: Mapping[str, str]) -> dict[str, Method]:
    """The methods of a cell by label; dense is always one of them, since everything is measured against it."""
    found: dict[str, Method] = {}
    for name in dict.fromkeys(["dense", *names]):
        found |= make_all(name, budget, arguments)
    return found


def refusals_of(methods: Mapping[str, Method], page_size: int) -> dict[str, QuestbenchError]:
    """Labels of methods that make no sense with this page size, with the reason."""
    refused: dict[str, QuestbenchError] = {}
    for name, method in methods.items():
        try:
            if method.budgeted:
                method.check(page_size)
        except UsageError as error:
            refused[name] = error
    return refused
