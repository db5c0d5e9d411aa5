"""Records as a table of cells: one row per cell, its inputs and all its metrics as columns.

Inputs keep their names (``seq_len``, ``budget``, ``dtype``); a metric is a column of its name, and what was derived
from it stands behind a dot::

    latency  latency.p20  latency.p80  latency.score  latency.score.p20  speedup.dense  score  score.ci_low

``stage`` and ``baseline`` qualify a metric (``stage="total"`` does not) instead of splitting its cell. Besides, every
row has run, machine, commit, kind, method, label, args, backend, seed, status, reason, fallback, yardstick, warnings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from questbench.records.environment import machine
from questbench.records.schema import ResultRecord, RunManifest

if TYPE_CHECKING:
    import pandas as pd

FORMER = {"sdpa": "torch"}
"""Names in records of earlier versions, and what they are called now."""
BASELINES = ("dense", "torch", "flashinfer")
"""What others are compared with: never the best sparse method, never a fallback."""
OWN = (
    "run",
    "machine",
    "commit",
    "kind",
    "method",
    "label",
    "args",
    "backend",
    "seed",
    "status",
    "reason",
    "fallback",
    "yardstick",
    "warnings",
)
"""Columns that every row has; an input of the same name gets ``_param`` behind it."""
QUALIFIERS = ("stage", "baseline")
UNQUALIFIED = ("ideal_speedup",)
"""Metrics that have one baseline only, so that their columns need not name it."""


def commit(manifest: RunManifest | None) -> str:
    """The short commit of a run, ``+`` behind it if the checkout had changes."""
    git = (manifest.environment.get("git") if manifest else None) or {}
    return f"{str(git.get('commit', ''))[:10]}{'+' if git.get('dirty') else ''}" if git.get("commit") else "unknown"


def cell_frame(records: Iterable[ResultRecord], manifests: Mapping[str, RunManifest] | None = None) -> pd.DataFrame:
    """One row per cell, in the order in which cells first appear.

    Args:
        records: of any kinds; mostly of one, since inputs differ between kinds.
        manifests: by run name; they say on which machine and at which commit a run was made.
    """
    import pandas as pd

    rows: dict[str, dict[str, Any]] = {}
    for record in records:
        manifest = (manifests or {}).get(record.run)
        environment = manifest.environment if manifest else {}
        inputs = {key: value for key, value in record.params.items() if key not in QUALIFIERS}
        method = FORMER.get(record.method, record.method)
        identity = [machine(environment), record.kind, method, record.method_args, record.backend]
        key = json.dumps([*identity, inputs, record.seed], sort_keys=True, default=str)
        row = rows.get(key)
        if row is None:
            row = rows[key] = {
                "machine": machine(environment),
                "kind": record.kind,
                "method": method,
                "label": method,
                "args": record.method_args,
                "backend": record.backend,
                "seed": record.seed,
                "status": record.status,
                "reason": None,
                "fallback": False,
                "yardstick": False,
                "warnings": [],
                **{f"{name}_param" if name in OWN else name: value for name, value in inputs.items()},
            }
        _add(row, record)
        row["run"], row["commit"] = record.run, commit(manifest)
    frame = pd.DataFrame(list(rows.values()), columns=None if rows else list(OWN))
    if not frame.empty:
        frame["label"] = labels(frame)
    return frame


def input_columns(frame: pd.DataFrame, records: Iterable[ResultRecord]) -> list[str]:
    """Columns of ``frame`` that are inputs, in the order of the records."""
    names = dict.fromkeys(name for record in records for name in record.params if name not in QUALIFIERS)
    return [column for name in names if (column := f"{name}_param" if name in OWN else name) in frame]


def units(records: Iterable[ResultRecord]) -> dict[str, str]:
    """Unit of every metric column."""
    return {_column(record): record.unit for record in records}


def labels(frame: pd.DataFrame) -> list[str]:
    """Method names, with those arguments behind them that tell apart two variants of one method."""
    found = []
    for method, arguments in zip(frame["method"], frame["args"], strict=True):
        variants = list(frame.loc[frame["method"] == method, "args"])
        names = dict.fromkeys(name for variant in variants for name in variant if name not in ("budget", "page_size"))
        differing = [name for name in names if len({json.dumps(v.get(name), default=str) for v in variants}) > 1]
        shown = [f"{name}={arguments[name]}" for name in differing if name in arguments and _telling(name, variants)]
        found.append(" ".join([str(method), *shown]))
    return found


def _telling(name: str, variants: list[dict[str, Any]]) -> bool:
    """Whether an argument varies at one budget: one derived from the budget (half of it, say) tells nothing new."""
    by_budget: dict[str, set[str]] = {}
    for variant in variants:
        by_budget.setdefault(json.dumps(variant.get("budget")), set()).add(json.dumps(variant.get(name), default=str))
    return any(len(values) > 1 for values in by_budget.values())


def _column(record: ResultRecord) -> str:
    if record.metric in UNQUALIFIED:
        return record.metric
    qualifiers = [str(record.params[name]) for name in QUALIFIERS if record.params.get(name) not in (None, "total")]
    return ".".join([record.metric, *(FORMER.get(name, name) for name in qualifiers)])


def _add(row: dict[str, Any], record: ResultRecord) -> None:
    row["warnings"] = [*row["warnings"], *(text for text in record.warnings if text not in row["warnings"])]
    row["yardstick"] |= bool(record.stats.get("yardstick"))
    row["fallback"] |= (
        bool(record.stats.get("dense_fallback")) and FORMER.get(record.method, record.method) not in BASELINES
    )
    if record.status != "ok":
        row["reason"] = row["reason"] or f"{record.status}: {record.reason}"
        return
    row["status"] = "ok"
    column = _column(record)
    row[column] = record.value
    row[f"{column}.fidelity"] = record.fidelity
    for name, value in record.stats.items():
        if name not in ("dense_fallback", "yardstick") and not isinstance(value, dict):
            row[f"{column}.{name}"] = value
