"""The kernel experiment: what is measured, how it is refused, that nothing but dense reads everything."""

from __future__ import annotations

import pytest

from questbench.errors import UsageError
from questbench.experiments import kernel
from questbench.experiments.kernel import KernelConfig

SMALL = {
    "seq_lens": [512],
    "budgets": [128],
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 64,
    "threads": 1,
    "rounds": 3,
    "max_seconds": 0.5,
    "compile_limit": 0.0,
}


def records_of(**changes: object) -> list:
    config = KernelConfig(**{**SMALL, **changes})  # type: ignore[arg-type]
    kernel.check(config)
    return [record for unit in kernel.run(config) for record in unit.records]


@pytest.fixture(scope="module")
def measured() -> list:
    return records_of()


def value(records: list, method: str, metric: str, **params: object) -> float:
    (found,) = [
        record.value
        for record in records
        if record.method == method
        and record.metric == metric
        and all(record.params.get(key) == item for key, item in params.items())
    ]
    return found


def test_every_method_and_both_baselines_are_measured_with_raw_samples(measured):
    totals = {r.method: r for r in measured if r.metric == "latency" and r.params["stage"] == "total"}
    assert set(totals) == {"dense", "torch", "quest", "h2o", "tova", "streaming_llm"}
    assert len({len(record.samples) for record in totals.values()}) == 1  # interleaved: as many rounds for each
    assert all(record.value > 0 and record.status == "ok" for record in totals.values())


def test_stages_are_those_of_the_method(measured):
    stages: dict[str, set] = {}
    for record in measured:
        if record.metric == "latency":
            stages.setdefault(record.method, set()).add(record.params["stage"])
    assert stages["quest"] == {"total", "append", "score", "select", "attend", "rest"}
    assert stages["dense"] == {"total", "append", "attend", "rest"}
    assert stages["h2o"] == stages["tova"] == stages["streaming_llm"] == {"total", "append", "attend", "evict", "rest"}


def test_ideal_and_bytes_follow_the_traffic_model(measured):
    entry = 2 * 2 * 64 * 2
    assert value(measured, "dense", "bytes") == 512 * entry
    assert value(measured, "quest", "bytes") == (128 + 31) * entry
    assert value(measured, "quest", "ideal_speedup") == pytest.approx(512 / (128 + 31))


def test_counts_come_from_the_replay(measured):
    assert value(measured, "dense", "tokens_read") == 512
    assert value(measured, "quest", "tokens_read") == 128
    assert value(measured, "quest", "tokens_resident") == 512
    assert value(measured, "h2o", "tokens_resident") == 128


def test_speedups_are_paired_with_both_baselines(measured):
    for method in ("quest", "h2o", "tova", "streaming_llm"):
        for baseline in ("dense", "torch"):
            assert value(measured, method, "speedup", baseline=baseline) > 0


def test_a_budget_beyond_the_text_is_no_speedup(measured):
    records = records_of(methods=["quest"], budgets=[1024])
    assert value(records, "quest", "tokens_read") == 512
    assert value(records, "quest", "ideal_speedup") == 1.0


def test_warm_is_a_cell_of_its_own(measured):
    records = records_of(methods=["quest"], cache="warm", stages=False)
    assert {record.params["cache"] for record in records} == {"warm"}
    assert not {r.cell() for r in records} & {r.cell() for r in measured}


def test_other_heads_than_the_shapes_are_not_called_by_its_name():
    own = KernelConfig(shape="llama-3.1-8b", heads=32, kv_heads=8, head_dim=128)
    cell = kernel.cells(own)[0]
    assert kernel.params(own, cell)["shape"] == "llama-3.1-8b"
    other = KernelConfig(shape="llama-3.1-8b", heads=4, kv_heads=2)
    assert kernel.params(other, cell)["shape"] == "custom"
    assert kernel.card(other)["shape"].startswith("custom: 4 query heads, 2 KV heads of 128")


def test_out_of_memory_is_a_record():
    records = records_of(methods=["quest"], seq_lens=[1 << 30], stages=False)
    assert {record.status for record in records} == {"failed"}
    assert all("out of memory" in record.reason for record in records)


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": 6, "kv_heads": 4},
        {"heads": 7, "kv_heads": None},
        {"heads": 4, "kv_heads": None},
        {"methods": ["oracle"]},
        {"methods": ["quest"], "budgets": [8]},
        {"cache": "tepid"},
        {"page_sizes": [12]},
        {"shape": "llama-99"},
        {"dtype": ["int4"]},
        {"rounds": 0},
    ],
)
def test_what_no_cell_can_do_is_refused(changes):
    with pytest.raises(UsageError):
        records_of(**changes)


def test_variants_of_a_method_are_timed_in_the_same_rounds():
    records = records_of(methods=["quest"], method_args={"group_merge": "sum_softmax,max"}, stages=False)
    totals = [r for r in records if r.metric == "latency" and r.params.get("stage") == "total" and r.method == "quest"]
    assert [record.method_args["group_merge"] for record in totals] == ["sum_softmax", "max"]
    assert len({record.cell() for record in totals}) == 2
    assert len({len(record.samples) for record in totals}) == 1
