"""Two sets of records, baseline and candidate: ratio and interval per cell, "not significant", regressions.

Judged are times, memory (lower is better) and scores (higher is better), as they were measured. Ratios such as the
speed-up over dense are not: they fall when dense becomes faster, which is no regression.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from questbench.errors import PrerequisiteError, UsageError
from questbench.records.environment import machine
from questbench.records.schema import ResultRecord, RunManifest
from questbench.report import _format as fmt
from questbench.report.frame import BASELINES
from questbench.report.render import NONE, Cell, Table

if TYPE_CHECKING:
    import numpy as np

THRESHOLD = 0.05
"""Smallest relative change of a time that is called one: two runs of the same code differ by some per cent."""
RESAMPLES = 1000
UNFORCED = ("dtype", "device", "threads")
"""Inputs that ``force`` lets differ."""


@dataclasses.dataclass
class Comparison:
    """What a comparison found."""

    tables: list[Table]
    regressions: list[str]
    """One sentence each; empty if nothing became significantly worse."""
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Change:
    """Candidate against baseline in one cell and metric."""

    before: ResultRecord
    after: ResultRecord
    ratio: float | None
    interval: tuple[float, float] | None
    """95 % interval of the ratio, or of the difference for scores."""
    verdict: str
    """``better``, ``worse``, ``not significant``, ``no samples``, or what went wrong."""
    regression: bool


def compare(
    baseline: Sequence[ResultRecord],
    candidate: Sequence[ResultRecord],
    manifests: Mapping[str, RunManifest],
    *,
    force: bool = False,
    threshold: float = THRESHOLD,
) -> Comparison:
    """Compare cells that both have.

    Args:
        baseline: newest per cell.
        candidate: newest per cell.
        manifests: of both, by run name.
        force: compare although machine or data type differ.
        threshold: smallest relative change of a time that counts.

    Raises:
        UsageError: another machine or data type, and not forced.
        PrerequisiteError: no cell in common.
    """
    if not force:
        _require_comparable(baseline, candidate, manifests)
    before = {key: record for record in baseline if (key := _key(record, force)) is not None}
    after = {key: record for record in candidate if (key := _key(record, force)) is not None}
    common = [key for key in before if key in after]
    if not common:
        raise PrerequisiteError("The two have no cell in common.", "Run both with the same command line.")
    changes = [_change(before[key], after[key], threshold) for key in common]
    keys = _telling(change.after for change in changes)
    notes = [
        f"Only in the {name}: {count} measured values."
        for name, count in (("baseline", len(before) - len(common)), ("candidate", len(after) - len(common)))
        if count
    ]
    if force:
        notes.append("Forced: machine, data type, device and threads may differ.")
    regressions = [f"{_name(change.after, keys)}: {_says(change)}" for change in changes if change.regression]
    return Comparison(_tables(changes, keys, threshold), regressions, notes)


def _key(record: ResultRecord, force: bool) -> str | None:
    """Identity of a judged value, or ``None`` for one that is not judged."""
    judged = record.unit in ("s", "B", "perplexity") or record.metric == "score"
    if not judged or record.fidelity != "measured" or record.params.get("stage") not in (None, "total"):
        return None
    params = {name: value for name, value in record.params.items() if not (force and name in UNFORCED)}
    identity = [record.kind, record.method, record.method_args, params, record.metric, record.seed]
    return json.dumps([*identity, None if force else record.backend], sort_keys=True, default=str)


def _require_comparable(
    baseline: Iterable[ResultRecord], candidate: Iterable[ResultRecord], manifests: Mapping[str, RunManifest]
) -> None:
    def facts(records: Iterable[ResultRecord]) -> tuple[set[str], set[str]]:
        records = list(records)
        runs = {record.run for record in records}
        machines = {machine(manifests[run].environment) for run in runs if run in manifests}
        return machines, {str(record.params["dtype"]) for record in records if "dtype" in record.params}

    (machines, dtypes), (other_machines, other_dtypes) = facts(baseline), facts(candidate)
    hint = "Compare runs of one machine and data type, or add --force to see the numbers anyway."
    if machines != other_machines:
        there, here = ("; ".join(sorted(names)) or "unknown" for names in (machines, other_machines))
        raise UsageError(f"The baseline was made on another machine: {there}; the candidate on {here}.", hint)
    if dtypes and other_dtypes and not dtypes & other_dtypes:
        there, here = (", ".join(sorted(names)) for names in (dtypes, other_dtypes))
        raise UsageError(f"The baseline has data type {there}, the candidate {here}.", hint)


def _change(before: ResultRecord, after: ResultRecord, threshold: float) -> Change:
    if before.status != "ok" or before.value is None:
        return Change(before, after, None, None, f"baseline {before.status}", False)
    if after.status != "ok" or after.value is None:
        return Change(before, after, None, None, f"now {after.status}: {after.reason}", True)
    if _fallback(after) and not _fallback(before):
        return Change(before, after, None, None, fmt.FALLBACK, True)
    if _fallback(after) or _fallback(before):
        return Change(before, after, None, None, fmt.FALLBACK, False)
    ratio = after.value / before.value if before.value else None
    if after.stats.get("yardstick"):
        return Change(before, after, ratio, None, "yardstick: not judged", False)
    score = after.metric == "score"
    if len(before.samples) < 2 or len(after.samples) < 2:
        return Change(before, after, ratio, None, "no samples: not judged", False)
    interval = _difference(before.samples, after.samples) if score else _ratio(before.samples, after.samples)
    neutral = 0.0 if score else 1.0
    significant = not interval[0] <= neutral <= interval[1]
    if not significant or (not score and abs((ratio or math.inf) - 1) < threshold):
        return Change(before, after, ratio, interval, "not significant", False)
    worse = interval[1] < 0 if score else interval[0] > 1
    return Change(before, after, ratio, interval, "worse" if worse else "better", worse)


def _fallback(record: ResultRecord) -> bool:
    return bool(record.stats.get("dense_fallback")) and record.method not in BASELINES


def _draws(samples: Sequence[float], generator: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float64]]:
    import numpy as np

    values = np.asarray(samples, dtype=float)
    return values[generator.integers(0, len(values), (RESAMPLES, len(values)))]


def _ratio(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Bootstrap interval of the ratio of medians."""
    import numpy as np

    generator = np.random.default_rng(0)
    below, above = (np.median(_draws(samples, generator), axis=1) for samples in (before, after))
    low, high = np.percentile(above / below, [2.5, 97.5])
    return float(low), float(high)


def _difference(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Bootstrap interval of the difference of means; paired where both scored the same samples."""
    import numpy as np

    generator = np.random.default_rng(0)
    if len(before) == len(after):
        means = _draws([b - a for a, b in zip(before, after, strict=True)], generator).mean(axis=1)
    else:
        means = _draws(after, generator).mean(axis=1) - _draws(before, generator).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _tables(changes: list[Change], keys: Sequence[str], threshold: float) -> list[Table]:
    tables = []
    for kind, metric in dict.fromkeys((change.after.kind, change.after.metric) for change in changes):
        part = [change for change in changes if (change.after.kind, change.after.metric) == (kind, metric)]
        unit = part[0].after.unit
        divisor, name = fmt.scale([change.before.value for change in part], unit)
        score = metric == "score"
        shown = "difference" if score else "ratio"
        table = Table(
            title=f"{kind}: {metric.replace('_', ' ')}, candidate against baseline",
            columns=["cell", f"baseline\n({name})", f"candidate\n({name})", f"{shown}\n[95% interval]", "verdict"],
            text_columns=frozenset({"cell", "verdict"}),
            setup=[
                "Higher is better; paired bootstrap over samples."
                if score
                else f"Lower is better; bootstrap of medians; changes below {threshold:.0%} are not judged."
            ],
        )
        for change in part:
            values = [fmt.number(record.value, divisor) for record in (change.before, change.after)]
            effect, verdict = Cell(_effect(change, score)), Cell(change.verdict, best=change.regression)
            table.rows.append([Cell(_name(change.after, keys)), *map(Cell, values), effect, verdict])
        ratios = [change.ratio for change in part if change.ratio and not score]
        if len(ratios) > 1:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            table.rows.append([Cell("geometric mean"), Cell(NONE), Cell(NONE), Cell(fmt.number(mean)), Cell(NONE)])
        tables.append(table)
    return tables


def _effect(change: Change, score: bool) -> str:
    if score and change.before.value is not None and change.after.value is not None:
        low, high = change.interval or (None, None)
        return fmt.spread(change.after.value - change.before.value, low, high, 0.01)
    low, high = change.interval or (None, None)
    return fmt.spread(change.ratio, low, high)


def _says(change: Change) -> str:
    effect = _effect(change, change.after.metric == "score")
    return change.verdict if change.ratio is None else f"{effect} ({change.verdict})"


def _telling(records: Iterable[ResultRecord]) -> list[str]:
    """Inputs that tell the cells apart, and the usual ones."""
    values: dict[str, set[str]] = {}
    for record in records:
        for key, value in record.params.items():
            values.setdefault(key, set()).add(str(value))
    return [key for key, found in values.items() if key in ("task", "seq_len", "budget") or len(found) > 1]


def _name(record: ResultRecord, keys: Sequence[str]) -> str:
    known = [key for key in keys if record.params.get(key)]
    words = [f"{key.replace('_', ' ')} {fmt.inputs(key, record.params[key])}" for key in known]
    return f"{record.method}, {', '.join(words)}" if words else record.method
