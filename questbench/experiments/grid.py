"""What the experiments have in common: settings, and the methods of a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from questbench.errors import QuestbenchError, UsageError
from questbench.flags import AXES, HOW, MACHINE, RUN, duration, flag, whole
from questbench.methods._base import Method
from questbench.methods._make import make_all


@dataclass(frozen=True)
class RunConfig:
    """Settings and axes of every experiment; the help texts say what they are."""

    methods: list[str] = flag(
        ["dense", "quest", "h2o", "tova", "streaming_llm"], "--method NAMES", AXES, "Methods (see: ls methods)."
    )
    method_args: dict[str, str] = flag(
        {},
        "-M NAME=VALUE",
        AXES,
        "Set a parameter of all methods, or of one: quest.select_by=q_head. Commas sweep. Repeatable.",
    )
    budgets: list[int] = flag(
        [2048], "--budget --token-budget TOKENS", AXES, "KV entries that one query head may see in a step."
    )
    page_sizes: list[int] = flag([16], "--page-size TOKENS", AXES, "Tokens per page: 4, 8 ... 128.")
    backend: str | None = flag(
        None, "--backend NAME", MACHINE, "Kernels (see: ls backends; default: the device's own).", order=1
    )
    seed: int = flag(0, "--seed N", RUN, "Seed of everything random.", whole)


@dataclass(frozen=True)
class GridConfig(RunConfig):
    """Settings and axes of every experiment over a grid."""

    seq_lens: list[int] = flag([32768], "--seq-len TOKENS", AXES, "Tokens in the cache.", order=-1)
    batch: list[int] = flag([1], "--batch N", AXES, "Rows per step.")
    dtype: list[str] = flag(["bf16"], "--dtype NAMES", AXES, "bf16, fp16, fp32.")
    rounds: int = flag(20, "--rounds N", HOW, "Fewest rounds per cell.", order=1)
    max_seconds: float = flag(20.0, "--max-seconds S", HOW, "Time limit for measuring one cell.", order=1)
    """Set-up apart."""
    time_limit: float | None = flag(
        None,
        "--time-limit TIME",
        HOW,
        "End the run after this time (90, 20m, 2h) with what is measured.",
        duration,
        order=1,
    )
    """No further cell is begun then, and the rest of a cell is left out where that is possible."""
    stages: bool = flag(True, "--stages/--no-stages", HOW, "Time the stages of a step apart.", order=2)
    """append, score, select, attend, evict and what is around them."""


@dataclass(frozen=True)
class OneMachine:
    """Where an experiment runs that does not sweep it."""

    threads: int | None = flag(None, "--threads N", MACHINE, "CPU threads (default: all cores).")
    device: str = flag("cpu", "--device NAME", MACHINE, "cpu or cuda.")


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
