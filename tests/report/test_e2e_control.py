"""Whole steps have a control too: torch's attention, timed in the same rounds and shown nowhere else."""

from __future__ import annotations

import dataclasses

import golden
from test_report_compare import HERE

from questbench.records.schema import ResultRecord
from questbench.report.compare import compare
from questbench.report.tables import tables


def run(name: str, steps: float, machine: float) -> list[ResultRecord]:
    """Steps take ``steps`` times as long as usual, and torch's attention ``machine`` times."""

    def slower(record: ResultRecord, factor: float) -> ResultRecord:
        return dataclasses.replace(
            record, value=(record.value or 0) * factor, samples=[value * factor for value in record.samples], run=name
        )

    kept = [
        record for record in golden.e2e((32768,)) if record.metric == "tpot" and record.params.get("stage") == "total"
    ]
    spread = [1 + 0.002 * place for place in range(20)]
    steps_made = [dataclasses.replace(record, samples=[(record.value or 0) * one for one in spread]) for record in kept]
    params = {key: value for key, value in kept[0].params.items() if key != "stage"}
    control = dataclasses.replace(
        kept[0], method="dense", metric="control", value=1e-3, params=params, samples=[1e-3 * one for one in spread]
    )
    return [slower(record, steps) for record in steps_made] + [slower(control, machine)]


def regressions(steps: float, machine: float) -> list[str]:
    manifests = {name: dataclasses.replace(HERE, run=name) for name in "ab"}
    return compare(run("a", 1.0, 1.0), run("b", steps, machine), manifests).regressions


def test_a_slower_machine_is_no_regression_of_whole_steps():
    assert regressions(4.0, 4.0) == []
    assert regressions(1.5, 1.0)


def test_the_control_is_no_row_of_any_table():
    shown = tables(run("a", 1.0, 1.0))
    assert all("control" not in column for table in shown for column in table.columns)
