"""Records as a table of cells: one row per cell, its inputs and all its metrics as columns.

Inputs keep their names (``seq_len``, ``budget``, ``dtype``); a metric is a column of its name, and what was derived
from it stands behind a dot::

    latency  latency.p20  latency.p80  latency.score  latency.score.p20  speedup.dense  score  score.ci_low

``stage`` and ``baseline`` qualify a metric (``stage="total"`` does not) instead of splitting its cell. Besides, every
row has the columns of :data:`OWN`. A row belongs to one run, unless runs are joined on request.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from questbench import registry
from questbench.records.environment import machine
from questbench.records.schema import ResultRecord, RunManifest
from questbench.report import _label, _runs

if TYPE_CHECKING:
    import pandas as pd

FORMER = {"sdpa": "torch"}
"""Names in records of earlier versions, and what they are called now."""
DENSE = "dense"
"""The baseline that is our own code."""
OWN = (
    "run",
    "run_mark",
    "about_runs",
    "run_states",
    "machine",
    "commit",
    "kind",
    "method",
    "label",
    "args",
    "typed",
    "backend",
    "seed",
    "status",
    "reason",
    "baseline",
    "fallback",
    "yardstick",
    "warnings",
)
"""Columns that every row has; an input of the same name gets ``_param`` behind it."""
QUALIFIERS = ("stage", "baseline")
UNQUALIFIED = ("ideal_speedup",)
"""Metrics that have one baseline only, so that their columns need not name it."""


def cell_frame(
    records: Iterable[ResultRecord], manifests: Mapping[str, RunManifest] | None = None, *, join: bool = False
) -> pd.DataFrame:
    """One row per run and cell, in the order in which they first appear.

    Args:
        records: of any kinds; mostly of one, since inputs differ between kinds.
        manifests: by run name; they say on which machine and at which commit a run was made. More than one of them
            get marks (A, B, ...) in their order.
        join: one row per cell, whatever runs its metrics come from.
    """
    import pandas as pd

    rows: dict[str, dict[str, Any]] = {}
    marks = run_marks(manifests or {})
    for record in records:
        manifest = (manifests or {}).get(record.run)
        environment = manifest.environment if manifest else {}
        inputs = {key: value for key, value in record.params.items() if key not in QUALIFIERS}
        method = FORMER.get(record.method, record.method)
        identity = [machine(environment), record.kind, method, record.method_args, record.backend]
        key = json.dumps([*identity, inputs, record.seed, not join and record.run], sort_keys=True, default=str)
        row = rows.get(key)
        if row is None:
            row = rows[key] = {
                "machine": machine(environment),
                "kind": record.kind,
                "method": method,
                "label": method,
                "args": record.method_args,
                "typed": _label.typed(record, manifest),
                "backend": record.backend,
                "seed": record.seed,
                "status": record.status,
                "reason": None,
                "baseline": is_baseline(method, record.backend),
                "fallback": False,
                "yardstick": False,
                "warnings": [],
                **{f"{name}_param" if name in OWN else name: value for name, value in inputs.items()},
            }
        _add(row, record)
        row["run"], row["commit"] = record.run, _runs.commit(manifest)
        _add_run(row, manifest, marks.get(record.run, ""))
    frame = pd.DataFrame(list(rows.values()), columns=None if rows else list(OWN))
    if not frame.empty:
        frame["label"] = _label.labels(frame)
    return frame


def is_baseline(method: str, backend: str = "") -> bool:
    """Whether it is what others are compared with, our own dense or another library: never a fallback, never the best.

    Args:
        backend: that of a record, which is the library's own name also where the library is not known here.
    """
    name = FORMER.get(method, method)
    return name in (DENSE, backend) or name in _libraries()


@functools.cache
def _libraries() -> frozenset[str]:
    return frozenset(registry.names("questbench.baselines"))


def run_marks(runs: Iterable[str]) -> dict[str, str]:
    """``A``, ``B``, ... for runs that are shown together, in their order; none where there is one run only."""
    names = list(runs)
    if len(names) < 2:
        return {}
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return {name: letters[place % 26] + (str(place // 26) if place >= 26 else "") for place, name in enumerate(names)}


def input_columns(frame: pd.DataFrame, records: Iterable[ResultRecord]) -> list[str]:
    """Columns of ``frame`` that are inputs, in the order of the records."""
    names = dict.fromkeys(name for record in records for name in record.params if name not in QUALIFIERS)
    return [column for name in names if (column := f"{name}_param" if name in OWN else name) in frame]


def _add_run(row: dict[str, Any], manifest: RunManifest | None, mark: str) -> None:
    """Mark, description and state of the run that a record of the row comes from."""
    about, states = row.setdefault("about_runs", {}), row.setdefault("run_states", [])
    row.setdefault("run_mark", "")
    if mark not in about:
        about[mark] = _runs.describe(manifest) if manifest else ""
        row["run_mark"] = ",".join(filter(None, about))
        if manifest and (state := _runs.state(manifest)):
            states.append(f"Run {mark or manifest.run} {state}")


def _column(record: ResultRecord) -> str:
    if record.metric in UNQUALIFIED:
        return record.metric
    qualifiers = [str(record.params[name]) for name in QUALIFIERS if record.params.get(name) not in (None, "total")]
    return ".".join([record.metric, *(FORMER.get(name, name) for name in qualifiers)])


def _add(row: dict[str, Any], record: ResultRecord) -> None:
    row["warnings"] = [*row["warnings"], *(text for text in record.warnings if text not in row["warnings"])]
    row["yardstick"] |= bool(record.stats.get("yardstick"))
    row["fallback"] |= bool(record.stats.get("dense_fallback")) and not row["baseline"]
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
