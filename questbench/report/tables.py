"""Records -> cells -> tables: one builder per kind of experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from questbench.records.schema import ResultRecord, RunManifest
from questbench.report import _accuracy_table, _e2e_table, _kernel_table
from questbench.report.frame import cell_frame, input_columns
from questbench.report.render import Table

if TYPE_CHECKING:
    import pandas as pd

_BUILDERS: dict[str, Callable[[pd.DataFrame, list[str]], list[Table]]] = {
    "kernel": _kernel_table.build,
    "accuracy": _accuracy_table.build,
    "e2e": _e2e_table.build,
}


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
            found += _BUILDERS[kind](part.reset_index(drop=True), names)
    return found
