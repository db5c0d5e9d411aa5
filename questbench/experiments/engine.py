"""What an experiment yields: a unit of work that is stored whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from questbench.errors import QuestbenchError, UsageError
from questbench.methods._base import Method
from questbench.records.schema import Kind, ResultRecord

Progress = Callable[[int, int, str], None]
"""``progress(done, total, estimate)``: units done, units in all, the current estimate in words."""


@dataclass(frozen=True)
class Unit:
    """Finished work: an interleaved group of cells in ``kernel``, one sample or one summary in ``accuracy``."""

    key: str
    """Known before the unit runs; ``--resume`` skips units whose key is stored."""
    records: list[ResultRecord]
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Rows for samples.jsonl."""
    prefills: int = 0
    """Dense prefills that this unit made."""


def within(progress: Progress | None, done: int, total: int) -> Callable[[str], None]:
    """Progress inside one unit: only the words change."""

    def tell(text: str) -> None:
        if progress:
            progress(done, total, text)

    return tell


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
    """The record of a cell that cannot run: the reason instead of a value.

    Args:
        method_args: they belong to the cell's identity, by which a later success replaces this record.
    """
    reason = f"{error.message} {error.hint or ''}".strip() if isinstance(error, QuestbenchError) else str(error)
    return ResultRecord(
        run="",
        kind=kind,
        status="failed",
        method=method,
        method_args=dict(method_args or {}),
        backend=backend,
        params=params,
        metric=metric,
        unit=unit,
        value=None,
        reason=reason or type(error).__name__,
        seed=seed,
    )
