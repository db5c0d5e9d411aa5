"""``kernel`` and ``accuracy`` on a GPU: what they report is whole, counted and, for the retrieval model, known."""

from __future__ import annotations

import pytest
from gpu_bodies import DEVICE, REHEARSED, backend
from test_kernel import records_of, value

from questbench.experiments import accuracy
from questbench.experiments.accuracy import AccuracyConfig

pytestmark = pytest.mark.gpu

METHODS = ["dense", "quest", "h2o", "tova", "streaming_llm"]


@pytest.mark.parametrize("kv_heads", [2, 8])
def test_a_kernel_cell(kv_heads: int) -> None:
    backend()
    shape = {"heads": 8, "kv_heads": kv_heads, "head_dim": 128, "seq_lens": [2048], "budgets": [256], "batch": [2]}
    records = records_of(device=DEVICE, dtype=["bf16"], **shape)
    totals = {r.method: r for r in records if r.metric == "latency" and r.params["stage"] == "total"}
    assert set(totals) >= {*METHODS, "torch"}
    assert all(totals[name].status == "ok" and totals[name].value > 0 for name in (*METHODS, "torch"))
    if not REHEARSED:
        assert "flashinfer" in totals
        assert all(record.params["timing"] == "graph" for record in records)
        eager = [text for record in totals.values() for text in record.warnings if "CUDA graph" in text]
        assert not eager, eager
    assert value(records, "dense", "tokens_read") == 2048
    assert value(records, "quest", "tokens_read") == 256
    for method in ("h2o", "tova", "streaming_llm"):
        assert value(records, method, "tokens_resident") == 256
    stages = {r.params["stage"] for r in records if r.method == "quest" and r.metric == "latency"}
    assert {"append", "score", "select", "attend"} <= stages


def test_accuracy_of_the_retrieval_model() -> None:
    backend()
    config = AccuracyConfig(
        ["passkey"], budgets=[256], seq_lens=[1024], samples=3, device=DEVICE, dtype="fp16", methods=METHODS
    )
    accuracy.check(config)
    records = [record for unit in accuracy.run(config) for record in unit.records]
    found = {record.method: record for record in records if record.metric == "score"}
    assert set(found) == set(METHODS) and all(record.status == "ok" for record in records)
    assert found["dense"].value == found["quest"].value == 1.0
    assert found["quest"].stats["tokens_visible"] <= 256 and not found["quest"].stats["dense_fallback"]
    for method in ("h2o", "tova", "streaming_llm"):
        assert found[method].stats["tokens_resident"] <= 256
