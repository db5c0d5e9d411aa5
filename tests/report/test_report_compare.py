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
