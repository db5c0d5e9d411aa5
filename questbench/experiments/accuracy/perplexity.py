"""Records of texts that are only read: perplexity with its difference to dense, and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from questbench import units
from questbench.experiments.accuracy.config import Work
from questbench.measure import blocks
from questbench.measure.correlation import FEWEST
from questbench.tasks._base import StreamTask, Task

Row = Mapping[str, Any]


def metrics(
    own: Sequence[Row], dense: Sequence[Row], details: dict[str, Any], warnings: list[str], task: Task, seed: int
) -> list[dict[str, Any]]:
    """The metrics ``perplexity`` and ``bits_per_byte`` of one cell.

    Args:
        own: rows of samples.jsonl, one per text.
        dense: those of dense, empty where there is nothing to compare.
        details: what stands in ``stats`` besides.
    """
    texts = _texts(own)
    found = blocks.perplexity(texts, seed=seed)
    losses = math.fsum(row["nll"] for row in own)
    size = sum(row["scored_bytes"] for row in own)
    details |= {
        "n": len(own),
        "scored_tokens": found.tokens,
        "ci_low": found.ci_low,
        "ci_high": found.ci_high,
        "by_window": _by_window(own, task),
    }
    if recalled := sum(row.get("recall_tokens", 0) for row in own):
        details["recall_tokens"] = recalled
        details["recall_perplexity"] = blocks.exp(math.fsum(row.get("recall_nll", 0.0) for row in own) / recalled)
    if dense:
        compared = blocks.compare(texts, _texts(dense), seed=seed)
        details |= {
            "delta_vs_dense": compared.delta,
            "delta_ci_low": compared.ci_low,
            "delta_ci_high": compared.ci_high,
            "relative_vs_dense": compared.relative,
            "relative_ci_low": compared.relative_low,
            "relative_ci_high": compared.relative_high,
            **({} if details["nothing_left_out"] else {"p_value": compared.p_value}),
            "min_detectable": compared.min_detectable,
            "blocks": compared.blocks,
            "block_tokens": compared.block_tokens,
        }
        if compared.p_value is None and not details["nothing_left_out"]:
            warnings.append(
                "No difference to dense is called: what is lost is correlated over so many tokens that they make only "
                f"{units.counted(compared.blocks, 'block')} of {compared.block_tokens}, and the test needs {FEWEST}. "
                "Use more --samples or a longer --seq-len."
            )
    if not math.isfinite(found.ci_high):
        warnings.append(f"{found.tokens} scored tokens are too few for an interval; use more --samples.")
    perplexity = {
        "metric": "perplexity",
        "unit": "perplexity",
        "value": found.value,
        "samples": [blocks.exp(row["nll"] / row["scored_tokens"]) for row in own],
        "stats": details,
        "warnings": warnings,
    }
    bits = {
        "metric": "bits_per_byte",
        "unit": "bits/byte",
        "value": losses / math.log(2) / size,
        "samples": [row["nll"] / math.log(2) / row["scored_bytes"] for row in own],
        "stats": {"n": len(own), "bytes": size, "dense_fallback": details["dense_fallback"]},
    }
    return [perplexity, bits]


def inputs(work: Work, own: Sequence[Row]) -> dict[str, Any]:
    """What identifies a record besides: the largest budget, where the texts' own context ends before it.

    Then the tokens that count begin behind that budget, so that they are other ones than in a run of smaller budgets.
    """
    return {"counted_behind": work.behind} if any("context_tokens" in row for row in own) else {}


def _texts(rows: Sequence[Row]) -> list[blocks.Series]:
    return [[(loss, int(count)) for loss, count in row["windows"]] for row in rows]


def _by_window(rows: Sequence[Row], task: Task) -> list[float]:
    """Perplexity of each window of the task's size, counted from the first scored token, over all texts."""
    size = task.window if isinstance(task, StreamTask) else 0
    sums: dict[int, list[float]] = {}
    for row in rows:
        for place, (loss, count) in enumerate(row["windows"]):
            total = sums.setdefault(place * row["window"] // max(size, row["window"]), [0.0, 0.0])
            total[0] += loss
            total[1] += count
    return [blocks.exp(loss / count) for _, (loss, count) in sorted(sums.items())]
