"""Records of one (task, length): scores with intervals, paired against dense, with what was really read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from questbench.experiments._unit import unusable
from questbench.measure import paired, stats
from questbench.records.schema import ResultRecord

if TYPE_CHECKING:
    from questbench.experiments._accuracy_sample import Session
    from questbench.experiments.accuracy import AccuracyConfig, Cell, Refused
    from questbench.tasks._base import Task

LOSSLESS_SAMPLES = 100
"""Below this many samples a score illustrates; it proves nothing."""
Row = Mapping[str, Any]


def summary(
    config: AccuracyConfig,
    session: Session,
    task: Task,
    spec: str,
    length: int,
    count: int,
    cells: Sequence[Cell],
    rows: Sequence[Row],
) -> list[ResultRecord]:
    """One ``score`` record per cell.

    Args:
        rows: rows of samples.jsonl, one per (sample, cell), in any order.
    """
    by_cell = {cell.key: sorted((r for r in rows if r["cell"] == cell.key), key=_unit) for cell in cells}
    dense = [row["score"] for row in by_cell[cells[0].key]]
    records = []
    for cell in cells:
        own = by_cell[cell.key]
        scores = [row["score"] for row in own]
        low, high = _interval(task, scores, config.seed)
        details: dict[str, Any] = {
            "n": len(scores),
            "ci_low": low,
            "ci_high": high,
            **{name: _mean(own, name) for name in ("tokens_visible", "tokens_read", "tokens_resident")},
            "dense_fallback": any(row["dense_fallback"] for row in own),
            "prompt_tokens": _mean(own, "prompt_tokens"),
            "new_tokens": _mean(own, "new_tokens"),
        }
        if cell.method.yardstick:
            details |= {"yardstick": True, "tokens_scored": _mean(own, "tokens_scored")}
        if any("needle_read" in row for row in own):
            details["needle_read"] = _mean(own, "needle_read")
            for step in ("first", "last"):
                details[f"needle_resident_{step}"] = sum(bool(r.get(f"needle_resident_{step}")) for r in own)
            details["hits"] = sum(score == 1.0 for score in scores)
        if cell.method.budgeted:
            compared = paired.compare(scores, dense, binary=task.binary, seed=config.seed)
            details |= {
                "delta_vs_dense": compared.delta,
                "delta_ci_low": compared.ci_low,
                "delta_ci_high": compared.ci_high,
                "p_value": compared.p_value,
                "losses": compared.losses,
                "gains": compared.gains,
                "min_detectable": compared.min_detectable,
            }
        records.append(
            ResultRecord(
                run="",
                kind="accuracy",
                status="ok",
                method=cell.name,
                method_args=cell.method.arguments(cell.page_size),
                backend=session.ops.name,
                params=params(config, session, spec, length, count, cell.page_size, _budget(cell)),
                metric="score",
                unit="fraction",
                value=sum(scores) / len(scores),
                samples=scores,
                stats=details,
                warnings=_warnings(len(scores), bool(details["dense_fallback"])),
                seed=config.seed,
            )
        )
    return records


def refusals(
    config: AccuracyConfig, session: Session, spec: str, length: int, count: int, refused: Sequence[Refused]
) -> list[ResultRecord]:
    """Failed records of the combinations that make no sense."""
    return [
        unusable(
            "accuracy",
            session.ops.name,
            item.method,
            params(config, session, spec, length, count, item.page_size, item.budget),
            item.error,
            metric="score",
            unit="fraction",
            seed=config.seed,
        )
        for item in refused
    ]


def params(
    config: AccuracyConfig, session: Session, spec: str, length: int, count: int, page_size: int, budget: int | None
) -> dict[str, Any]:
    """The inputs that identify a record."""
    return {
        "task": spec,
        "seq_len": length,
        "budget": budget,
        "page_size": page_size,
        "protocol": config.protocol,
        "dense_layers": session.dense_layers,
        "model": session.loaded.name,
        "dtype": config.dtype,
        "samples": count,
        "device": config.device,
    }


def _budget(cell: Cell) -> int | None:
    """The budget as asked for; dense has none."""
    return cell.method.budget if cell.method.budgeted else None


def _interval(task: Task, scores: Sequence[float], seed: int) -> tuple[float, float]:
    if task.binary:
        return stats.wilson(sum(score == 1.0 for score in scores), len(scores))
    return stats.bootstrap_mean(scores, seed=seed)


def _mean(rows: Sequence[Row], name: str) -> float:
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else math.nan


def _unit(row: Row) -> str:
    return str(row["unit"])


def _warnings(count: int, fallback: bool) -> list[str]:
    warnings = []
    if count < LOSSLESS_SAMPLES:
        warnings.append(f"{count} samples illustrate; use --samples {LOSSLESS_SAMPLES} or more to conclude.")
    if fallback:
        warnings.append("dense fallback: a sparse layer attended the whole text; this is not the method's accuracy.")
    return warnings
