"""Records of one (task, length): scores with intervals, paired against dense, with what was really read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from questbench.errors import CellError
from questbench.experiments.accuracy import perplexity as stream
from questbench.experiments.accuracy.config import Cell, Refused, Work
from questbench.experiments.accuracy.protocol import STREAM
from questbench.experiments.engine import unusable
from questbench.measure import lossless, paired, stats
from questbench.methods._base import Method
from questbench.models import reach
from questbench.records.schema import ResultRecord
from questbench.tasks._base import RequestTask, Task

if TYPE_CHECKING:
    from questbench.experiments.accuracy.session import Session

Row = Mapping[str, Any]
LOW = 0.5
"""Below this score of dense a cell says more about the model than about the method."""
WENT_ON = (
    "Samples were added after results of fewer had been shown. Intervals and p values hold for a number that was fixed "
    "beforehand: do not add samples until a difference appears."
)
CLEAR = 0.05
"""Below this p value of its own a cell differs from dense."""
COUNTS = ("tokens_visible", "tokens_read", "tokens_resident", "pages_read")


def summary(
    session: Session, work: Work, cells: Sequence[Cell], rows: Sequence[Row], *, went_on: bool = False
) -> list[ResultRecord]:
    """One ``score`` record per cell, or ``perplexity`` and ``bits_per_byte`` for a text.

    Args:
        rows: rows of samples.jsonl, one per (sample, cell), in any order.
        went_on: results were shown before the run went on with this number of samples.
    """
    by_cell = {cell.key: sorted((r for r in rows if r["cell"] == cell.key), key=_unit) for cell in cells}
    # What no cell can use is left out of all of them alike, so that they stay paired.
    left_out = {_unit(row): str(row["unusable"]) for row in rows if "unusable" in row}
    by_cell = {key: [row for row in own if _unit(row) not in left_out] for key, own in by_cell.items()}
    dense = by_cell[cells[0].key]
    floor = _floor(dense, work.task)
    records = []
    for cell in cells:
        own = by_cell[cell.key]
        errors = [str(row["error"]) for row in own if "error" in row]
        try:
            if errors:
                raise CellError(f"{len(errors)} of {len(own)} samples failed. {errors[0]}")
            if not own:
                raise CellError(f"None of {len(left_out)} samples can be used. {next(iter(left_out.values()), '')}")
            details, warnings = _shared(session, work, cell, own, left_out)
            warnings += floor
            if went_on:
                warnings.append(WENT_ON)
            against = [] if any("error" in row for row in dense) or not cell.method.budgeted else dense
            if cell.method.budgeted and not against:
                warnings.append("dense failed on a sample, so there is nothing to compare with.")
            if work.protocol == STREAM:
                found = stream.metrics(own, against, details, warnings, work.task, session.config.seed)
            else:
                found = [_score(session, work.task, own, against, details, warnings)]
            for metric in found:
                if not math.isfinite(metric["value"]):
                    raise CellError(f"The {metric['metric']} is {metric['value']}, which is not a number.")
        except CellError as failure:
            records.append(_unusable(session, work, cell.method, cell.page_size, failure))
            continue
        inputs = params(session, work, cell.page_size, _budget(cell.method)) | stream.inputs(work, own)
        records += [
            ResultRecord(
                run="",
                kind="accuracy",
                status="ok",
                method=cell.name,
                method_args=cell.method.arguments(cell.page_size),
                backend=session.ops.name,
                params=inputs,
                seed=session.config.seed,
                **metric,
            )
            for metric in found
        ]
    return records


def family(records: Sequence[ResultRecord]) -> list[ResultRecord]:
    """The p values of all comparisons, corrected for having been made together (Holm): one record per comparison.

    A cell in which nothing was left out compares dense with itself: it has no p value and is no part of the family.
    """
    compared = [record for record in records if record.stats.get("p_value") is not None]
    corrected = paired.holm([float(record.stats["p_value"]) for record in compared])
    return [
        dataclasses.replace(
            record,
            metric="p_holm",
            unit="probability",
            value=p,
            samples=[],
            warnings=[],
            stats={"family": len(compared), "p_value": record.stats["p_value"]},
        )
        for record, p in zip(compared, corrected, strict=True)
    ]


def refusals(session: Session, work: Work, refused: Sequence[Refused]) -> list[ResultRecord]:
    """Records without a value of the combinations that make no sense."""
    return [_unusable(session, work, item.method, item.page_size, item.error) for item in refused]


def params(session: Session, work: Work, page_size: int, budget: int | None) -> dict[str, Any]:
    """The inputs that identify a record."""
    config = session.config
    return {
        "task": work.spec,
        "seq_len": work.length,
        "budget": budget,
        "page_size": page_size,
        "protocol": work.protocol,
        "dense_layers": session.dense_layers,
        "model": session.loaded.name,
        "dtype": config.dtype,
        "samples": work.samples,
        "chat_template": "off" if session.chat_for(work) is None else "on",
        "device": config.device,
    }


def _score(
    session: Session, task: Task, own: Sequence[Row], dense: Sequence[Row], details: dict[str, Any], warnings: list[str]
) -> dict[str, Any]:
    """The metric ``score`` of one cell."""
    config = session.config
    scores = [row["score"] for row in own]
    low, high = _interval(task, scores, config.seed)
    details |= {"n": len(scores), "ci_low": low, "ci_high": high, "new_tokens": _mean(own, "new_tokens")}
    if any("needle_read" in row for row in own):
        details["needle_read"] = _mean(own, "needle_read")
    if any("needle_resident_first" in row for row in own):
        for step in ("first", "last"):
            details[f"needle_resident_{step}"] = sum(bool(r.get(f"needle_resident_{step}")) for r in own)
        details["hits"] = sum(score == 1.0 for score in scores)
    if depths := _by_depth(own):
        details["by_depth"] = depths
    if dense:
        base = [row["score"] for row in dense]
        compared = paired.compare(scores, base, binary=task.binary, seed=config.seed)
        differences = [score - other for score, other in zip(scores, base, strict=True)]
        verdict = lossless.judge(
            differences,
            _interval(task, base, config.seed)[0],
            binary=task.binary,
            margin=config.margin,
            seed=config.seed,
        )
        details |= {
            "delta_vs_dense": compared.delta,
            "delta_ci_low": compared.ci_low,
            "delta_ci_high": compared.ci_high,
            "losses": compared.losses,
            "gains": compared.gains,
            "min_detectable": compared.min_detectable,
            "lossless_margin": config.margin,
        }
        if not details["nothing_left_out"]:
            details |= {
                "p_value": compared.p_value,
                "lossless": verdict.claimed,
                "lossless_lower": verdict.lower,
                "lossless_reason": verdict.reason,
                "lossless_needs": verdict.needed,
            }
    # A difference that is clear needs no more samples.
    if dense and len(scores) < lossless.SAMPLES and not details.get("p_value", 1.0) < CLEAR:
        some = f"{len(scores)} samples are" if len(scores) > 1 else "1 sample is"
        enough = lossless.enough(config.margin)
        warnings.append(f"{some} too few to tell whether anything is lost; use --samples {enough} or more.")
    return {
        "metric": "score",
        "unit": "fraction",
        "value": math.fsum(scores) / len(scores),
        "samples": scores,
        "stats": details,
        "warnings": warnings,
    }


def _floor(dense: Sequence[Row], task: Task) -> list[str]:
    """A warning where dense hardly answers: what it cannot do, no method can lose."""
    scores = [row["score"] for row in dense if "score" in row]
    mean = math.fsum(scores) / len(scores) if scores else 1.0
    share = f"{100 * mean:.2g} %"
    if mean <= lossless.MARGIN:
        why = "there is nothing for a method to lose, so the comparison means nothing"
        return [f"dense itself scores {share} here: {why}."]
    if mean < LOW and task.full_marks:
        return [f"dense itself scores only {share} here: this cell measures the model rather than the method."]
    return []


def _by_depth(rows: Sequence[Row]) -> list[list[float]]:
    """[depth, samples, sum of scores] of a task that puts several samples at one depth."""
    depths: dict[float, list[float]] = {}
    for row in rows:
        if isinstance(depth := row["meta"].get("depth"), (int, float)):
            depths.setdefault(round(float(depth), 6), []).append(row["score"])
    return [[depth, len(scores), math.fsum(scores)] for depth, scores in sorted(depths.items())]


def _shared(
    session: Session, work: Work, cell: Cell, own: Sequence[Row], left_out: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Details and warnings that every metric of a cell has."""
    sparse = _sparse_share(own)
    details: dict[str, Any] = {
        "sparse_steps": sparse,
        "nothing_left_out": cell.method.budgeted and not sparse and cell.method.prefill_key is None,
        **{name: _mean(own, name) for name in COUNTS},
        "dense_fallback": any(row["dense_fallback"] for row in own),
        "prompt_tokens": _mean(own, "prompt_tokens"),
        "prefill_tokens": _mean(own, "prefill_tokens"),
        "steps": _mean(own, "steps"),
        "stop_ids": sorted(session.stop_ids),
    }
    if layers := reach.hybrid(session.loaded.model.config, session.dense_layers):
        details["layers"] = layers
    if cell.method.yardstick:
        details |= {"yardstick": True, "tokens_scored": _mean(own, "tokens_scored")}
    if isinstance(work.task, RequestTask):
        details |= work.task.summary([row["metrics"] for row in own])
    warnings = []
    if details["dense_fallback"]:
        warnings.append("dense fallback: a sparse layer attended the whole text; this is not the method's accuracy.")
    if details["nothing_left_out"]:
        warnings.append("nothing was left out: every text fits the budget, so this is dense attention again.")
    if cell.method.prefill_key is not None:
        details["own_prefill"] = True
        warnings.append(f"{cell.name} reads each prompt for itself, where the others share a dense prefill.")
    if left_out:
        details["unusable"] = len(left_out)
        some = f"{len(left_out)} samples" if len(left_out) > 1 else "1 sample"
        warnings.append(f"{some} could not be used and count nowhere. {next(iter(left_out.values()))}")
    if read := sorted({mark for row in own for mark in row["meta"].get("special_tokens", ())}):
        warnings.append(f"texts spell special tokens, which the model reads as such: {', '.join(read[:4])}.")
    if thoughts := sum(bool(row.get("thinking")) for row in own):
        details["thinking"] = thoughts
        warnings.append(
            f"{thoughts} of {len(own)} answers ended while the model was still thinking: this is not its score."
        )
    if cut := [row["removed_tokens"] for row in own if row.get("removed_tokens")]:
        details["truncated"] = len(cut)
        what = f"the model's {session.max_length} tokens: the middle"
        if isinstance(work.task, RequestTask):
            what = f"{min(work.length, session.max_length or work.length)} tokens: the beginning"
        warnings.append(f"{len(cut)} prompts exceeded {what} of their context was cut.")
    return details, warnings


def _unusable(session: Session, work: Work, method: Method, page_size: int, error: Exception) -> ResultRecord:
    return unusable(
        "accuracy",
        session.ops.name,
        method.name,
        params(session, work, page_size, _budget(method)),
        error,
        metric="perplexity" if work.protocol == STREAM else "score",
        unit="perplexity" if work.protocol == STREAM else "fraction",
        seed=session.config.seed,
        method_args=method.arguments(page_size),
    )


def _budget(method: Method) -> int | None:
    """The budget as asked for; dense has none."""
    return method.budget if method.budgeted else None


def _sparse_share(rows: Sequence[Row]) -> float | None:
    """Share of all decode steps in which something of the text was left out."""
    known = [(row["sparse_steps"], row["steps"]) for row in rows if row.get("sparse_steps") is not None]
    steps = sum(count for _, count in known)
    return math.fsum(share * count for share, count in known) / steps if steps else None


def _interval(task: Task, scores: Sequence[float], seed: int) -> tuple[float, float]:
    if task.binary:
        return stats.wilson(sum(score == 1.0 for score in scores), len(scores))
    return stats.bounded_mean(scores, 0.0, 1.0, seed=seed)


def _mean(rows: Sequence[Row], name: str) -> float:
    values = [row[name] for row in rows if row.get(name) is not None]
    return math.fsum(values) / len(values) if values else math.nan


def _unit(row: Row) -> str:
    return str(row["unit"])
