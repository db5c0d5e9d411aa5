"""Comparing two sets of runs: regressions are found, noise is not, other machines are refused."""

from __future__ import annotations

import dataclasses

import golden
import pytest

from questbench.errors import PrerequisiteError, UsageError
from questbench.records.schema import ResultRecord, RunManifest
from questbench.report.compare import Comparison, compare
from questbench.report.render import to_markdown

HERE = RunManifest("a", "kernel", [], {}, golden.ENVIRONMENT, "2026-01-01")
THERE = RunManifest("b", "kernel", [], {}, {**golden.ENVIRONMENT, "machine": "Other GPU"}, "2026-01-02")


def run(
    before: list[ResultRecord], after: list[ResultRecord], *, other: bool = False, force: bool = False
) -> Comparison:
    before = [dataclasses.replace(record, run="a") for record in before]
    after = [dataclasses.replace(record, run="b") for record in after]
    manifests = {"a": HERE, "b": THERE if other else dataclasses.replace(HERE, run="b")}
    return compare(before, after, manifests, force=force)


def kernel(**changes: object) -> list[ResultRecord]:
    return golden.kernel((8192, 32768), (1024,), **changes)  # type: ignore[arg-type]


def test_noise_is_not_significant() -> None:
    found = run(kernel(seed=0), kernel(seed=1))
    assert found.regressions == []
    text = to_markdown(found.tables[0])
    assert "not significant" in text
    assert "geometric mean" in text


def test_slower_is_a_regression_and_faster_is_not() -> None:
    found = run(kernel(), kernel(slower=1.3, seed=1))
    assert len(found.regressions) == 8, "four sparse methods at two lengths; dense and torch did not change"
    assert all("worse" in text for text in found.regressions)
    assert run(kernel(), kernel(slower=0.7, seed=1)).regressions == []


def test_a_faster_dense_arm_is_no_regression() -> None:
    after = [
        dataclasses.replace(record, value=(record.value or 0) / 2) if record.metric == "speedup" else record
        for record in kernel()
    ]
    assert run(kernel(), after).regressions == []


def test_lower_scores_are_regressions() -> None:
    found = run(golden.accuracy(), golden.accuracy(worse=0.3))
    assert any(text.startswith("quest, ") for text in found.regressions)
    assert not any(text.startswith(("dense", "oracle", "random")) for text in found.regressions)
    assert run(golden.accuracy(worse=0.3), golden.accuracy()).regressions == []


def test_becoming_a_fallback_or_a_failure_is_a_regression() -> None:
    fallback = [
        dataclasses.replace(record, stats={**record.stats, "dense_fallback": True})
        if record.method == "quest"
        else record
        for record in golden.accuracy((64,))
    ]
    (text,) = run(golden.accuracy((64,)), fallback).regressions
    assert "DENSE-FALLBACK" in text
    failed = [
        dataclasses.replace(record, status="failed", value=None, samples=[], reason="out of memory")
        if (record.method, record.metric, record.params.get("stage")) == ("h2o", "latency", "total")
        else record
        for record in kernel()
    ]
    found = run(kernel(), failed)
    assert len(found.regressions) == 2
    assert "out of memory" in found.regressions[0]


def test_without_samples_nothing_is_judged() -> None:
    after = [dataclasses.replace(record, samples=[], value=99.0) for record in kernel()]
    found = run(kernel(), after)
    assert found.regressions == []
    assert "not judged" in to_markdown(found.tables[0])


def test_other_machines_and_types_are_refused_unless_forced() -> None:
    with pytest.raises(UsageError, match="another machine: Test CPU 9000") as error:
        run(kernel(), kernel(), other=True)
    assert error.value.hint and "--force" in error.value.hint
    with pytest.raises(UsageError, match="data type bf16, the candidate fp32"):
        run(kernel(), kernel(dtype="fp32"))
    found = run(kernel(), kernel(dtype="fp32", slower=1.5), other=True, force=True)
    assert found.regressions
    assert any("Forced" in note for note in found.notes)


def test_cells_of_one_side_are_counted() -> None:
    found = run(kernel(), golden.kernel((8192,), (1024,)))
    assert found.notes == ["Only in the baseline: 6 measured values."]
    with pytest.raises(PrerequisiteError, match="no cell in common"):
        run(kernel(), golden.kernel((4096,), (512,)))


def slower_machine(records: list[ResultRecord], factor: float, *, ours: float = 1.0) -> list[ResultRecord]:
    """As on a machine on which everything takes ``factor`` times as long, and our code ``ours`` times that."""
    found = []
    for record in records:
        grow = factor * (ours if record.method not in ("dense", "torch") else 1.0)
        if record.metric == "latency":
            record = scaled(record, grow)
        elif record.metric == "speedup" and ours != 1.0 and record.method not in ("dense", "torch"):
            record = scaled(record, 1 / ours)
        elif record.metric == "bandwidth_fraction":
            record = dataclasses.replace(record, stats={**record.stats, "bandwidth": 42e9 / factor})
        found.append(record)
    return found


def scaled(record: ResultRecord, factor: float) -> ResultRecord:
    samples = [factor * sample for sample in record.samples]
    return dataclasses.replace(record, value=factor * (record.value or 0), samples=samples)


def test_a_slower_machine_is_no_regression_of_the_code() -> None:
    found = run(kernel(), slower_machine(kernel(seed=1), 4.0))
    assert found.regressions == []
    text = to_markdown(found.tables[0])
    assert "the machine's: not significant" in text
    assert "control: not judged" in text, "torch's own time is never a regression"


def test_slower_code_on_a_slower_machine_is_one() -> None:
    found = run(kernel(), slower_machine(kernel(seed=1), 4.0, ours=1.5))
    assert len(found.regressions) == 8
    assert all("beside the controls" in text for text in found.regressions)


def test_controls_that_disagree_accuse_nobody() -> None:
    """Torch took as long as before, the probe says that memory was four times slower, or the other way round."""
    after = [
        scaled(record, 4.0) if record.metric == "latency" and record.method == "torch" else record
        for record in kernel(slower=4.0)
    ]
    after = [
        scaled(record, 4.0)
        if record.metric == "speedup" and record.params["baseline"] == "torch" and record.method != "dense"
        else record
        for record in after
    ]
    assert run(kernel(), after).regressions == []


def test_without_a_control_times_are_not_judged() -> None:
    def bare(records: list[ResultRecord]) -> list[ResultRecord]:
        kept = [record for record in records if record.method != "torch" and record.metric == "latency"]
        return [record for record in kept if record.params["stage"] == "total"]

    found = run(bare(kernel()), bare(kernel(slower=2.0)))
    assert found.regressions == []
    assert "no control: not judged" in to_markdown(found.tables[0])


def test_another_torch_is_no_control() -> None:
    """The plain read of memory still is."""
    after = [dataclasses.replace(record, run="b") for record in slower_machine(kernel(seed=1), 4.0)]
    before = [dataclasses.replace(record, run="a") for record in kernel()]
    packages = {**golden.ENVIRONMENT, "packages": {"torch": "3.0"}}
    manifests = {"a": HERE, "b": dataclasses.replace(HERE, run="b", environment=packages)}
    found = compare(before, after, manifests)
    assert found.regressions == []
    assert any("no controls" in note for note in found.notes)
    assert "plain read" in to_markdown(found.tables[0])


def test_a_busy_machine_is_named() -> None:
    busy = "This machine was busy before the run began (load 3.0 on 2 cores): timings will be disturbed."
    after = [dataclasses.replace(record, warnings=[busy]) for record in kernel(seed=1)]
    assert f"In the candidate: {busy}" in run(kernel(), after).notes
