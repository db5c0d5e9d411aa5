"""The end-to-end experiment: what is measured, what it is held against, what is refused, what fails with a reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from questbench import baselines
from questbench._noise import Noise
from questbench.baselines._base import Decode
from questbench.errors import UsageError
from questbench.experiments import e2e
from questbench.experiments.e2e import E2EConfig
from questbench.experiments.e2e.session import Session
from questbench.models.shapes import SHAPES, Shape

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "models"))
from tiny import BASE, CONFIGS, tiny

SMALL = {
    "model": "shape:small",
    "layers": 3,
    "seq_lens": [256],
    "budgets": [64],
    "dtype": ["fp32"],
    "threads": [1],
    "rounds": 3,
    "max_seconds": 0.5,
    "tokens": [1, 3],
    "prefill_rounds": 1,
    "prefill_chunk": 100,
}
ENTRY = 2 * 3 * 64 * 4
"""Bytes of one entry in one layer: 3 KV heads of 64, fp32."""


def records_of(**changes: object) -> list:
    config = E2EConfig(**{**SMALL, **changes})  # type: ignore[arg-type]
    e2e.check(config)
    return [record for unit in e2e.run(config) for record in unit.records]


@pytest.fixture(scope="module")
def prefilled() -> list:
    return records_of()


@pytest.fixture(scope="module")
def filled() -> list:
    return records_of(cache_fill="random", select_by=["kv_head"], rivals=["static", "dynamic"])


def value(records: list, method: str, metric: str, **params: object) -> float:
    (found,) = [
        record.value
        for record in records
        if record.method == method
        and record.metric == metric
        and all(record.params.get(key) == item for key, item in params.items())
    ]
    return found


METHODS = {"dense", "quest", "h2o", "tova", "streaming_llm"}


def test_every_method_is_timed_in_the_same_rounds(prefilled):
    totals = {r.method: r for r in prefilled if r.metric == "tpot" and r.params["stage"] == "total"}
    assert set(totals) == METHODS
    assert len({len(record.samples) for record in totals.values()}) == 1
    assert {record.stats["path"] for record in totals.values()} == {"flat"}
    assert all(record.stats["same_tokens"] for record in totals.values()), "counting must change no token"
    assert {r.method for r in prefilled if r.metric == "ttft"} == METHODS
    assert {r.params["stage"] for r in prefilled if r.metric == "peak_memory"} <= {"prefill", "decode"}


def test_parts_add_up_and_are_those_of_the_method(prefilled):
    stages: dict[str, dict] = {}
    for record in prefilled:
        if record.metric == "tpot" and record.params["stage"] != "total":
            stages.setdefault(record.method, {})[record.params["stage"]] = record.samples
    everywhere = {"weights", "append", "attend", "rest", "staged"}
    assert set(stages["dense"]) == everywhere
    assert set(stages["quest"]) == everywhere | {"score", "select"}
    assert set(stages["h2o"]) == set(stages["tova"]) == set(stages["streaming_llm"]) == everywhere | {"evict"}
    for parts in stages.values():
        for place, whole in enumerate(parts["staged"]):
            assert sum(parts[name][place] for name in parts if name != "staged") == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("kind", ["prefilled", "filled"])
def test_bytes_are_weights_and_what_each_layer_reads(kind, request):
    records = request.getfixturevalue(kind)
    dense, quest = (value(records, name, "bytes") for name in ("dense", "quest"))
    weights = next(r.stats["weights"] for r in records if r.metric == "bytes")
    assert dense - weights == 3 * 257 * ENTRY
    # Two dense layers; in the third three pages and the newest, which holds one entry, and the bounds of 16 others.
    assert quest - weights == 2 * 257 * ENTRY + (3 * 16 + 1 + 16) * ENTRY
    assert value(records, "quest", "ideal_speedup") == dense / quest
    bound = next(r for r in records if r.metric == "bound" and r.method == "quest")
    assert bound.value == pytest.approx(quest / bound.stats["bandwidth"])
    assert value(records, "quest", "break_even") == 65  # 49 entries and 4 pages' bounds; 64 still fit


def test_weights_of_a_tied_model_are_read_whole(prefilled):
    config, cell = E2EConfig(**SMALL), e2e.cells(E2EConfig(**SMALL))[0]  # type: ignore[arg-type]
    session = Session.open(config, cell)
    parameters = sum(p.numel() for p in session.loaded.model.parameters()) * 4
    assert value(prefilled, "dense", "weights_bytes") == pytest.approx(parameters, rel=1e-3)  # rotary frequencies
    assert session.read_weights(2) - session.read_weights(1) == 288 * 4


def test_sizes_of_the_caches(prefilled):
    assert value(prefilled, "dense", "bounds_bytes") == 0
    pages = 17 * ENTRY  # 256 entries and the counted steps' in 17 pages; two of three layers are dense
    assert value(prefilled, "dense", "kv_bytes") == 3 * pages * 16
    assert value(prefilled, "quest", "bounds_bytes") == pages
    assert value(prefilled, "h2o", "kv_bytes") == (2 * pages + 4 * ENTRY) * 16


def test_counts_are_those_of_the_sparse_layer(prefilled):
    assert value(prefilled, "quest", "tokens_read") == pytest.approx(3 * 16 + 2.5)  # newest page: 1 to 4 entries
    assert value(prefilled, "h2o", "tokens_read") == 64
    assert value(prefilled, "dense", "tokens_read") == pytest.approx(258.5)


def test_filled_caches_have_no_first_token_time(filled):
    assert not [r for r in filled if r.metric == "ttft"]
    assert {r.params["cache_fill"] for r in filled} == {"random"}
    assert value(filled, "streaming_llm", "tokens_resident") == 64


def test_transformers_own_caches_stand_beside_ours(filled):
    for kind in ("static", "dynamic"):
        (record,) = [r for r in filled if r.metric == "tpot" and r.method == f"transformers_{kind}"]
        assert record.value > 0 and record.stats["paired"] is False
        assert value(filled, "dense", "speedup", baseline=f"transformers_{kind}") > 0


def test_a_cache_of_transformers_that_a_model_does_not_take_is_skipped(monkeypatch):
    """Gemma 2 has no SDPA attention in transformers; its windows count in bytes and sizes all the same."""
    monkeypatch.setitem(SHAPES, "tiny", Shape("gemma2", 3, 128, 256, 4, 2, 64, 512, 1e4, 8192))
    options = {"model": "shape:tiny", "layers": None, "dense_layers": 1, "seq_lens": [4200], "stages": False}
    records = records_of(methods=["quest"], cache_fill="random", rivals=["static"], **options)
    (record,) = [r for r in records if r.method == "transformers_static"]
    assert (record.status, record.value) == ("skipped", None) and "SDPA" in record.reason
    entry = 2 * 2 * 64 * 4
    assert value(records, "dense", "kv_bytes") == entry * (263 * 16 + 2 * 4095)
    weights = next(r.stats["weights"] for r in records if r.metric == "bytes")
    assert value(records, "dense", "bytes") - weights == entry * (4201 + 2 * 4096)


def test_a_model_of_experts_without_a_plan(tmp_path):
    """Its own forward runs, its bytes cannot be known, and both are said."""
    tiny("gpt_oss").save_pretrained(tmp_path / "model")
    options = {"model": str(tmp_path / "model"), "layers": None, "dense_layers": 1, "stages": False}
    records = records_of(methods=["quest"], **options)
    for record in records:
        if record.metric == "tpot":
            assert record.stats["path"] == "model" and record.stats["loop"] == "eager"
            assert any("attention sinks" in text for text in record.warnings)
            assert any("all 2 experts" in text for text in record.warnings)
    assert value(records, "quest", "tokens_read") == pytest.approx(3 * 16 + 2.5)
    assert {r.method for r in records if r.metric == "ttft"} == {"dense", "quest"}


def test_the_step_that_judges_everything_counts_for_no_later_one():
    records = records_of(methods=["h2o"], method_args={"score_from": "decode"}, cache_fill="random", stages=False)
    assert value(records, "h2o", "tokens_read") == value(records, "h2o", "tokens_resident") == 64


@pytest.mark.parametrize("length", [5, 30])
def test_windows_of_transformers_keep_their_size(length):
    kind, extra = CONFIGS["mistral-sliding"]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(BASE | extra))).eval()
    heads, dim, tokens = model.config.num_key_value_heads, model.config.head_dim, {}
    for cache in ("static", "dynamic"):
        noise = Noise(2, heads, dim, torch.float32, "cpu", torch.Generator().manual_seed(0))
        run = Decode(model, "cpu", noise, length, 10, captured=False, fork=None, first=None)
        arm = baselines.load(f"transformers_{cache}").decode(run).arm
        for _ in range(4):
            arm.setup()
            sizes = {(layer.keys.shape[2], int(layer.cumulative_length)) for layer in arm.cache.layers}
            assert sizes == {(8 if cache == "static" else min(7, length - 1), length - 1)}
            arm.step(0)
            tokens.setdefault(cache, []).append(arm.ids.flatten().tolist())
    assert tokens["static"] == tokens["dynamic"]


def test_a_budget_beyond_the_text_is_no_speed_up():
    records = records_of(methods=["quest"], budgets=[512], cache_fill="random", stages=False)
    assert value(records, "quest", "ideal_speedup") == 1.0
    assert value(records, "quest", "tokens_read") == pytest.approx(258.5)


def test_a_dense_fallback_is_no_speed_up(monkeypatch):
    # A method that says it reads a budget and reads all of the text.
    from questbench.methods._base import Everything
    from questbench.methods.quest import Quest

    monkeypatch.setattr(Quest, "select", lambda self, q, layer, ops: Everything())
    records = records_of(methods=["quest"], cache_fill="random", stages=False)
    (record,) = [r for r in records if r.metric == "speedup"]
    assert (record.status, record.value) == ("skipped", None)
    assert "dense fallback" in record.reason


def test_batches_and_axes():
    records = records_of(batch=[2], methods=["h2o"], cache_fill="random", select_by=["auto"], stages=False)
    assert value(records, "h2o", "tokens_per_second") == pytest.approx(2 / value(records, "h2o", "tpot", stage="total"))
    config = E2EConfig(**{**SMALL, "select_by": ["kv_head", "q_head"], "threads": [1, 2]})  # type: ignore[arg-type]
    grid = e2e.cells(config)
    assert len(grid) == 4 == len({cell.key for cell in grid})
    assert [e2e.methods(config, cell)["quest"].select_by for cell in grid] == ["kv_head", "q_head"] * 2


def test_out_of_memory_is_a_record_with_the_predicted_need():
    records = records_of(methods=["quest"], seq_lens=[256, 1 << 30], cache_fill="random", stages=False)
    failed = [r for r in records if r.status == "failed"]
    assert {r.params["seq_len"] for r in failed} == {1 << 30} and {r.method for r in failed} == {"dense", "quest"}
    assert all("needs about" in r.reason and "GiB" in r.reason for r in failed)
    assert {r.params["seq_len"] for r in records if r.status == "ok"} == {256}


def test_the_cpu_running_out_all_the_same_is_a_record_too(monkeypatch):
    """Its allocator raises a plain RuntimeError."""

    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Session, "base", full)
    records = records_of(methods=["quest"], cache_fill="random")
    assert [(r.method, r.status) for r in records] == [("dense", "failed"), ("quest", "failed")]
    assert all(r.reason.startswith("out of memory, although") for r in records)


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ["oracle"]},
        {"methods": ["quest"], "budgets": [8]},
        {"cache_fill": "half"},
        {"loop": "graph"},
        {"loop": "loop"},
        {"rivals": ["quantised"]},
        {"tokens": [4, 4]},
        {"tokens": [4]},
        {"weights": ["int2"]},
        {"weights": ["int8"]},
        {"select_by": ["page"]},
        {"page_sizes": [12]},
        {"prefill_chunk": 0},
        {"batch": [0]},
        {"dense_layers": 3},
    ],
)
def test_what_no_cell_can_do_is_refused(changes):
    with pytest.raises(UsageError):
        records_of(**changes)


def test_a_finished_cell_is_not_run_again():
    config = E2EConfig(**SMALL)  # type: ignore[arg-type]
    assert list(e2e.run(config, finished={e2e.cells(config)[0].key})) == []
    assert torch.get_num_threads() >= 1
