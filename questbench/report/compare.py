"""Two sets of records, baseline and candidate: ratio and interval per cell, "not significant", regressions.

Judged are times, memory (lower is better) and scores (higher is better). Times of our own code are judged beside
controls (``_judge``): what the machine did to somebody else's code, or to a plain read, is not ours. Ratios such as the
speed-up over dense are not judged: they fall when dense becomes faster, which is no regression.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence

from questbench.errors import PrerequisiteError, UsageError
from questbench.records.environment import machine
from questbench.records.schema import ResultRecord, RunManifest
from questbench.report import _format as fmt
from questbench.report._judge import CONTROL, Change, Controls, judge
from questbench.report.render import NONE, Cell, Table

THRESHOLD = 0.05
"""Smallest relative change of a time that is called one: two runs of the same code differ by some per cent."""
DISTURBED = ("This machine was busy", "Other programs", "The read bandwidth")
"""How the warnings begin that are about the machine."""
UNFORCED = ("dtype", "device", "threads")
"""Inputs that ``force`` lets differ."""


@dataclasses.dataclass
class Comparison:
    """What a comparison found."""

    tables: list[Table]
    regressions: list[str]
    """One sentence each; empty if nothing became significantly worse."""
    notes: list[str]


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
    controls = Controls(
        baseline, candidate, UNFORCED if force else (), same_libraries=_same_libraries(manifests, before, after)
    )
    changes = [judge(before[key], after[key], controls, threshold) for key in common]
    keys = _telling(change.after for change in changes)
    notes = [
        f"Only in the {name}: {count} measured values."
        for name, count in (("baseline", len(before) - len(common)), ("candidate", len(after) - len(common)))
        if count
    ]
    if force:
        notes.append("Forced: machine, data type, device and threads may differ.")
    if not controls.same_libraries:
        notes.append("The two were made with different versions of torch or FlashInfer, which are then no controls.")
    notes += _disturbed(baseline, "baseline") + _disturbed(candidate, "candidate")
    regressions = [f"{_name(change.after, keys)}: {_says(change)}" for change in changes if change.regression]
    return Comparison(_tables(changes, keys, threshold), regressions, notes)


def _key(record: ResultRecord, force: bool) -> str | None:
    """Identity of a judged value, or ``None`` for one that is not judged."""
    judged = record.unit in ("s", "B", "perplexity") or record.metric == "score"
    if record.metric == CONTROL:
        return None
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
            columns=[
                "cell",
                f"baseline\n({name})",
                f"candidate\n({name})",
                f"{shown}\n[95% interval]",
                "beside\ncontrols",
                "control",
                "verdict",
            ],
            text_columns=frozenset({"cell", "control", "verdict"}),
            optional=("control", f"baseline\n({name})", f"candidate\n({name})"),
            setup=[
                "Higher is better; paired bootstrap over samples."
                if score
                else f"Lower is better; bootstrap of medians; changes below {threshold:.0%} are not judged.",
                "Bold: a regression." if any(change.regression for change in part) else "",
            ],
            about={
                "beside\ncontrols": (
                    "beside controls: the ratio divided by that of code that did not change (torch, FlashInfer), "
                    "and by that of a plain read of memory, both from the same rounds. The one nearer to 1 is shown. "
                    "A time counts as better or worse only if every control agrees."
                )
            },
        )
        for change in part:
            values = [fmt.number(record.value, divisor) for record in (change.before, change.after)]
            effects = [
                _effect(change, score),
                fmt.spread(change.corrected, *(change.corrected_interval or (None, None))),
            ]
            texts = [_name(change.after, keys), *values, *effects, change.control or NONE]
            table.rows.append([*map(Cell, texts), Cell(change.verdict, best=change.regression)])
        ratios = [change.ratio for change in part if change.ratio and not score]
        if len(ratios) > 1:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            cells = ["geometric mean", NONE, NONE, fmt.number(mean), NONE, NONE, NONE]
            table.rows.append([Cell(text) for text in cells])
        tables.append(table.without_empty_columns())
    return tables


def _effect(change: Change, score: bool) -> str:
    if score and change.before.value is not None and change.after.value is not None:
        low, high = change.interval or (None, None)
        return fmt.spread(change.after.value - change.before.value, low, high, 0.01)
    low, high = change.interval or (None, None)
    return fmt.spread(change.ratio, low, high)


def _says(change: Change) -> str:
    effect = _effect(change, change.after.metric == "score")
    if change.corrected is not None:
        effect += f", {fmt.number(change.corrected)} beside the controls"
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


def _same_libraries(manifests: Mapping[str, RunManifest], *sides: Mapping[str, ResultRecord]) -> bool:
    """Whether both sides ran the same torch and FlashInfer; unknown versions count as the same."""
    found: list[set[str]] = []
    for side in sides:
        runs = {record.run for record in side.values()} & set(manifests)
        packages = [manifests[run].environment.get("packages") for run in runs]
        known = [versions for versions in packages if isinstance(versions, dict)]
        found.append({f"{name} {versions.get(name)}" for versions in known for name in ("torch", "flashinfer-python")})
    return not (found[0] and found[1]) or found[0] == found[1]


def _disturbed(records: Iterable[ResultRecord], name: str) -> list[str]:
    """A note if one side was measured while the machine had other work."""
    texts = dict.fromkeys(text for record in records for text in record.warnings if text.startswith(DISTURBED))
    return [f"In the {name}: {text}" for text in list(texts)[:1]]
