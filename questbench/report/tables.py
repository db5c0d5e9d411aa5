"""Records -> cells -> tables: one builder per kind of experiment, and a plain one for kinds without their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from questbench.records.schema import ResultRecord, RunManifest
from questbench.report import _accuracy_table, _e2e_table, _kernel_table
from questbench.report import _format as fmt
from questbench.report.frame import cell_frame, input_columns, units
from questbench.report.render import Cell, Table

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 200
"""Rows that a plain table shows; the records have the rest."""
_BUILDERS: dict[str, Callable[[pd.DataFrame, list[str]], list[Table]]] = {
    "kernel": _kernel_table.build,
    "accuracy": _accuracy_table.build,
    "e2e": _e2e_table.build,
}
_TITLES = {"analyze": "Analysis"}


def tables(
    records: Iterable[ResultRecord], manifests: Mapping[str, RunManifest] | None = None, *, join: bool = False
) -> list[Table]:
    """Tables of all records, apart for every machine and kind: numbers of two machines never share a table.

    Args:
        manifests: of the runs, by name; more than one are told apart by marks in their order.
        join: a row may hold metrics of several runs.
    """
    found = []
    records = list(records)
    for kind in dict.fromkeys(record.kind for record in records):
        chosen = [record for record in records if record.kind == kind]
        frame = cell_frame(chosen, manifests, join=join)
        names = input_columns(frame, chosen)
        for _, part in frame.groupby("machine", sort=False):
            part = part.reset_index(drop=True)
            builder = _BUILDERS.get(kind)
            found += builder(part, names) if builder else _plain(kind, part, names, units(chosen))
    return found


def _plain(kind: str, frame: pd.DataFrame, names: list[str], metrics: Mapping[str, str]) -> list[Table]:
    """A row per cell, a column per metric."""
    keys, shared = fmt.split_inputs(frame, names, always=("seq_len", "budget"))
    metrics = {name: unit for name, unit in metrics.items() if name in frame}
    scales = {name: fmt.scale(fmt.column(frame, name), unit) for name, unit in metrics.items()}
    table = Table(
        title=_TITLES.get(kind, kind),
        columns=[
            *(key.replace("_", " ") for key in keys),
            "method",
            *(f"{name.replace('_', ' ')}\n({scales[name][1]})" for name in metrics),
        ],
        text_columns=frozenset({"method"}),
        optional=tuple(f"{name.replace('_', ' ')}\n({scales[name][1]})" for name in reversed(list(metrics)[1:])),
        setup=[fmt.shared_line(frame, shared), fmt.origin_line(frame), fmt.runs_line(frame), fmt.counts_line(frame)],
        warnings=fmt.list_warnings(frame, keys),
    )
    frame = frame.sort_values([key for key in keys if _sortable(frame[key])], kind="stable") if keys else frame
    for _, row in frame.head(LONGEST).iterrows():
        name = f"{row['label']} (yardstick)" if row["yardstick"] else str(row["label"])
        cells = [*(fmt.inputs(key, row[key]) for key in keys), name]
        cells += [_metric(table, row, metric, scales[metric][0]) for metric in metrics]
        if not metrics:
            cells.append(fmt.gap(table, row))
        table.rows.append([Cell(text) for text in cells])
    if not metrics:
        table.columns.append("result")
    if len(frame) > LONGEST:
        table.warnings.append(f"{len(frame) - LONGEST} more rows are in the records")
    return [table]


def _metric(table: Table, row: Any, metric: str, divisor: float) -> str:
    if fmt.missing(row.get(metric)):
        return fmt.gap(table, row)
    if row["fallback"] and metric.partition(".")[0] in ("speedup", "score"):
        return f"{fmt.FALLBACK} {table.mark(fmt.FALLBACK_NOTE)}"
    low, high = (row.get(f"{metric}.{name}") for name in ("p20", "p80"))
    if fmt.missing(low):
        low, high = (row.get(f"{metric}.{name}") for name in ("ci_low", "ci_high"))
    return fmt.spread(row[metric], low, high, divisor)


def _sortable(column: pd.Series[Any]) -> bool:
    return len({type(value) for value in column.dropna()}) <= 1 and not column.map(lambda v: isinstance(v, list)).any()
