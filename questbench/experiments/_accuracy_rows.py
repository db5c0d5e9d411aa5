"""Rows of samples.jsonl: one per sample and cell, with what was asked, answered and read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from questbench.measure import blocks

if TYPE_CHECKING:
    from questbench.experiments._accuracy_sample import Prepared
    from questbench.experiments._accuracy_scripts import Reply, Taught
    from questbench.experiments._counting import ReadCounter
    from questbench.experiments.accuracy import Cell, Work

SERIES = 64
"""Tokens per window of a stored series of losses: short enough for blocks of any length that the statistics take."""


def identity(work: Work, cell: Cell, prepared: Prepared, batch: int) -> dict[str, Any]:
    """What was asked, of which cell."""
    prompt = prepared.prompt
    row = {
        "sample": prepared.sample.id,
        "task": work.spec,
        "seq_len": work.length,
        "protocol": work.protocol,
        "cell": cell.key,
        "method": cell.name,
        "prompt": prepared.hash,
        "prompt_tokens": prompt.length,
        "prefill_tokens": len(prompt.prefill),
        "batch": batch,
        "meta": dict(prepared.sample.meta),
    }
    if prompt.removed:
        row["removed_tokens"] = prompt.removed
    if len(prompt.prefill) != prepared.context_tokens:
        row["context_tokens"] = prepared.context_tokens
    return row


def failed(why: str) -> dict[str, Any]:
    """Of a cell that did not get through."""
    return {"error": why}


def answered(work: Work, prepared: Prepared, replies: Sequence[Reply], counter: ReadCounter) -> dict[str, Any]:
    """Completion and score; of several turns the mean, with each turn's own beside it."""
    sample, task = prepared.sample, work.task
    if sample.turns:
        scores = [float(task.score_turn(sample, number, reply.text)) for number, reply in enumerate(replies)]
    else:
        scores = [float(task.score(sample, replies[0].text))]
    row: dict[str, Any] = {
        "steps": len(counter.steps),
        "new_tokens": sum(len(reply.tokens) for reply in replies),
        "completion": "\n".join(reply.text for reply in replies),
        "stop": replies[-1].stop,
        "score": math.fsum(scores) / len(scores),
    }
    reading = [(reply, counter.steps[reply.first : reply.last + 1]) for reply in replies]
    seen = [[reads.needle_read for step in steps for reads in step] for _, steps in reading]
    known = [[share for share in shares if share is not None] for shares in seen]
    if any(known):
        flat = [share for shares in known for share in shares]
        row["needle_read"] = math.fsum(flat) / len(flat)
    if sample.turns:
        row["turns"] = [
            {"completion": reply.text, "score": score, "stop": reply.stop, "needle_read": _mean(shares)}
            for reply, score, shares in zip(replies, scores, known, strict=True)
        ]
    elif known[0]:
        steps = reading[0][1]
        # An upper and a lower bound of a hit: parts of the needle at the first step, all of it up to the last.
        row["needle_resident_first"] = all(reads.needle_present for reads in steps[0])
        row["needle_resident_last"] = all(reads.needle_resident for reads in steps[-1])
    return row


def taught(prepared: Prepared, result: Taught) -> dict[str, Any]:
    """Losses of a given text, in windows."""
    losses, prompt = result.losses, prepared.prompt
    row: dict[str, Any] = {
        "steps": len(losses),
        "nll": math.fsum(losses),
        "scored_tokens": len(losses),
        "scored_bytes": prompt.scored_bytes,
        "greedy": _mean([float(one) for one in result.greedy]),
        "window": SERIES,
        "windows": [[loss, count] for loss, count in blocks.windows(losses, SERIES)],
    }
    if prompt.recalls:
        row["recall_nll"] = math.fsum(losses[place] for place in prompt.recalls)
        row["recall_tokens"] = len(prompt.recalls)
    return row


def reads(counter: ReadCounter) -> dict[str, Any]:
    """What was read, counted in the attention op: means over decode steps and sparse layers."""
    return {
        "tokens_visible": counter.mean("visible"),
        "tokens_read": counter.mean("read"),
        "pages_read": counter.mean("pages"),
        "tokens_resident": counter.mean("resident"),
        "tokens_scored": counter.mean("scored"),
        "dense_fallback": counter.fallback,
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
