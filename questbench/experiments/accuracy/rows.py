"""Rows of samples.jsonl: one per sample and cell, with what was asked, answered and read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from questbench import units
from questbench.errors import CellError
from questbench.experiments.accuracy.chat import thinking
from questbench.experiments.accuracy.config import Cell, Work
from questbench.experiments.accuracy.protocol import Prepared
from questbench.experiments.failures import told
from questbench.measure import blocks

if TYPE_CHECKING:
    from questbench.errors import QuestbenchError
    from questbench.experiments.accuracy.scripts import Reply, Taught
    from questbench.experiments.counting import ReadCounter, Reads

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


def failed(error: QuestbenchError | str) -> dict[str, Any]:
    """Of a cell that did not get through: tried again by ``--resume``, and no result of the cell without it."""
    return {"error": error if isinstance(error, str) else told(error)}


def unusable(work: Work, cell: Cell, index: int, error: QuestbenchError) -> dict[str, Any]:
    """Of a sample that cannot be used, in any cell: counted and shown, and neither right nor wrong."""
    return {
        "sample": f"{work.task.name}-{index:04d}",
        "task": work.spec,
        "seq_len": work.length,
        "protocol": work.protocol,
        "cell": cell.key,
        "method": cell.name,
        "unusable": told(error),
    }


def logged(prepared: Prepared, tokenizer: Any, *, first: bool) -> dict[str, Any]:
    """Gold answers and, in the row of the sample's ``first`` cell, the prompt as the model reads it (--log-samples)."""
    sample, prompt = prepared.sample, prepared.prompt
    row: dict[str, Any] = {"answers": list(sample.answers)}
    if sample.turns:
        row["answers_of_turns"] = [list(turn.answers) for turn in sample.turns]
    if first:
        row["prompt_text"] = tokenizer.decode(list(prompt.prefill + prompt.steps), skip_special_tokens=False)
        if prompt.later:
            row["questions"] = [tokenizer.decode(list(turn.tokens)) for turn in prompt.later]
    return row


def answered(work: Work, prepared: Prepared, replies: Sequence[Reply], counter: ReadCounter) -> dict[str, Any]:
    """Completion and score; of several turns the mean, with each turn's own beside it."""
    sample, task = prepared.sample, work.task
    if sample.turns:
        scores = [float(task.score_turn(sample, number, reply.answer)) for number, reply in enumerate(replies)]
    else:
        scores = [float(task.score(sample, replies[0].answer))]
    if not all(math.isfinite(score) for score in scores):
        raise CellError(
            f"{task.name} scores {sample.id} with {scores}, which is not a number.",
            "Check how the task computes its score.",
        )
    row: dict[str, Any] = {
        "steps": len(counter.steps),
        "new_tokens": sum(len(reply.tokens) for reply in replies),
        "completion": "\n".join(reply.text for reply in replies),
        "stop": replies[-1].stop,
        "score": math.fsum(scores) / len(scores),
    }
    if any(not reply.answer and thinking(reply.text) for reply in replies):
        row["thinking"] = True
    reading = [(reply, counter.steps[reply.first : reply.last + 1]) for reply in replies]
    recalls = [_recall(steps) for _, steps in reading]
    known = [share for share in recalls if share is not None]
    if known:
        row["needle_read"] = math.fsum(known) / len(known)
    if sample.turns:
        row["turns"] = [
            {"completion": reply.text, "score": score, "stop": reply.stop, "needle_read": share}
            for reply, score, share in zip(replies, scores, recalls, strict=True)
        ]
    elif known:
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
    """What was read, counted in the attention op: means over decode steps and sparse layers; null without any step."""
    means = {
        "tokens_visible": counter.mean("visible"),
        "tokens_read": counter.mean("read"),
        "pages_read": counter.mean("pages"),
        "tokens_resident": counter.mean("resident"),
        "tokens_scored": counter.mean("scored"),
    }
    return {
        **{name: value if math.isfinite(value) else None for name, value in means.items()},
        "sparse_steps": counter.sparse_share,
        "dense_fallback": counter.fallback,
    }


def _recall(steps: Sequence[Sequence[Reads]]) -> float | None:
    """Share of the evidence that was read while answering, mean over the sparse layers.

    Of a single needle the mean over the steps. Of several that are all needed an answer takes one after the other, so
    that each counts with the step that read most of it.
    """
    shares = [[reads.needle_read for reads in step] for step in steps]
    # [step][needle], mean over layers
    means = [
        [math.fsum(of_one) / len(of_one) for of_one in zip(*(layer for layer in step if layer), strict=True)]
        for step in shares
        if all(layer is not None for layer in step)
    ]
    if not means or not means[0]:
        return None
    of_needles = list(zip(*means, strict=True))
    if len(of_needles) == 1:
        return math.fsum(of_needles[0]) / len(of_needles[0])
    return math.fsum(max(of_one) for of_one in of_needles) / len(of_needles)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def estimate(work: Work, rows: Iterable[Mapping[str, Any]], usable: Sequence[Cell]) -> str:
    """How the cells of a task do so far, in words; a method that has several cells with its budgets."""
    parts = []
    names = [cell.name for cell in usable]
    by_cell: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_cell.setdefault(row["cell"], []).append(row)
    for cell in usable:
        own = by_cell.get(cell.key, [])
        scores = [row["score"] for row in own if "score" in row]
        losses = [(row["nll"], row["scored_tokens"]) for row in own if "nll" in row]
        label = cell.name
        if names.count(label) > 1:
            label += f" {units.count(cell.method.budget)}"
        if scores:
            parts.append(f"{label} {sum(scores) / len(scores):.0%}")
        elif losses:
            parts.append(f"{label} {blocks.exp(sum(x for x, _ in losses) / sum(n for _, n in losses)):.4g}")
    return f"{work.spec} at {units.count(work.length)}: " + ", ".join(parts)
