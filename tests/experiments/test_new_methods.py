"""SnapKV, DuoAttention and Twilight through the experiments: what they read, hold and should read, counted."""

from __future__ import annotations

import pytest
from accuracy_helpers import random_model, run, use

from questbench.errors import UsageError
from questbench.experiments import e2e, kernel
from questbench.experiments.e2e import E2EConfig
from questbench.experiments.kernel import KernelConfig
from questbench.methods._base import CacheShape
from questbench.methods.twilight import Twilight

METHODS = ["dense", "snapkv", "duo_attention"]


@pytest.fixture
def arguments(tmp_path):
    file = tmp_path / "full_attention_heads.tsv"

    def write(layers: int, kv_heads: int) -> dict[str, str]:
        rows = [[(layer + head) % 2 for head in range(kv_heads)] for layer in range(layers)]
        file.write_text("\n".join("\t".join(map(str, row)) for row in rows))
        return {"duo_attention.pattern": str(file), "duo_attention.sinks": "4", "snapkv.window": "8"}

    return write


def kernel_config(**own) -> KernelConfig:
    size = {"heads": 4, "kv_heads": 2, "head_dim": 64}
    brief = {"threads": 1, "rounds": 3, "max_seconds": 0.5, "compile_limit": 0.0}
    return KernelConfig(seq_lens=[512], budgets=[64], **size, **brief, **own)


def test_kernel(arguments):
    config = kernel_config(methods=METHODS, method_args=arguments(6, 2))
    kernel.check(config)
    records = [record for unit in kernel.run(config) for record in unit.records]
    assert all(record.status == "ok" for record in records if record.method in METHODS)
    found = {r.method: r for r in records if r.metric == "latency" and r.params["stage"] == "total"}
    # Replayed steps go back to the same state, so that each is the first behind the prompt.
    for count in ("tokens_visible", "tokens_read", "tokens_resident"):
        values = {r.method: r.value for r in records if r.metric == count}
        assert [values[name] for name in METHODS] == [512, 64, (512 + 64) / 2]
    assert not any(found[name].stats.get("dense_fallback") for name in METHODS)
    assert found["duo_attention"].method_args["sparsity"] == 0.5


def test_traffic_of_a_count_that_is_up_to_the_data():
    config = kernel_config(methods=["dense", "quest", "twilight"])
    records = [record for unit in kernel.run(config) for record in unit.records]
    stages = {r.params["stage"] for r in records if (r.method, r.metric) == ("twilight", "latency")}
    assert stages == {"total", "append", "score", "select", "attend", "rest"}
    found = {(r.method, r.metric): r.value for r in records if r.metric in ("bytes", "tokens_read", "ideal_speedup")}
    read, shape = found["twilight", "tokens_read"], CacheShape(4, 2, 64, 16, 2)
    assert 1 <= read < found["quest", "tokens_read"] == 64
    method = Twilight(64)
    assert found["twilight", "bytes"] == method.bytes_counted(512, shape, read) < method.bytes_read(512, shape)
    assert found["twilight", "ideal_speedup"] == found["dense", "bytes"] / found["twilight", "bytes"]


def test_end_to_end(arguments):
    config = E2EConfig(
        model="shape:small",
        layers=3,
        seq_lens=[256],
        budgets=[64],
        dtype=["fp32"],
        threads=[1],
        rounds=3,
        max_seconds=0.5,
        tokens=[1, 3],
        prefill_rounds=1,
        dense_layers=1,
        methods=METHODS,
        method_args=arguments(3, 3),
    )
    e2e.check(config)
    records = [record for unit in e2e.run(config) for record in unit.records]
    assert not [record for record in records if record.status == "failed"]
    kv = {r.method: r.value for r in records if r.metric == "kv_bytes"}
    entry, pages = 2 * 3 * 64 * 4, 17 * 16
    # Layers 1 and 2 are under the method; one of them has one retrieval head, the other two.
    assert kv["dense"] == 3 * pages * entry
    assert kv["duo_attention"] == (pages * 3 + pages * 3 + 64 * 3) * entry // 3
    assert kv["snapkv"] == (pages + 2 * 80) * entry
    assert all(r.stats["same_tokens"] for r in records if r.metric == "tpot" and "same_tokens" in r.stats)


def test_accuracy(arguments, monkeypatch):
    use(random_model(), monkeypatch)
    records, rows, _ = run(
        tasks=["passkey"],
        seq_lens=[300],
        budgets=[48],
        samples=2,
        methods=[*METHODS, "h2o", "tova"],
        method_args=arguments(3, 2),
    )
    found = {r.method: r.stats for r in records if r.metric == "score"}
    assert not any(stats["dense_fallback"] for stats in found.values())
    steps = {row["method"]: row for row in rows}
    for name in ("snapkv", "duo_attention"):
        read = [found[name][f"tokens_{what}"] for what in ("visible", "read", "resident")]
        assert read[0] == read[1] == read[2] < found["dense"]["tokens_read"]
    assert 48 <= found["snapkv"]["tokens_read"] < 48 + steps["snapkv"]["steps"]
    assert found["h2o"]["tokens_read"] == found["tova"]["tokens_read"] == 48
    half = (found["dense"]["tokens_read"] + 48) / 2
    assert found["duo_attention"]["tokens_read"] == pytest.approx(half)


def test_a_run_without_a_pattern_is_refused_and_says_where_patterns_are():
    config = KernelConfig(seq_lens=[512], budgets=[64], methods=["dense", "duo_attention"])
    with pytest.raises(UsageError, match="needs a pattern") as error:
        kernel.check(config)
    assert "attn_patterns" in (error.value.hint or "")
