"""End to end against the clock: a time limit, the best of torch's ways for transformers, controls in every record."""

from __future__ import annotations

import pytest
import torch
from test_e2e import SMALL, records_of, value

from questbench.baselines import _ways
from questbench.baselines._transformers import OWN, choose, register
from questbench.experiments import e2e
from questbench.experiments.e2e import E2EConfig

RANDOM = {"cache_fill": "random", "methods": ["quest"], "stages": False}


def units_of(**changes: object) -> list:
    return list(e2e.run(E2EConfig(**{**SMALL, **changes})))  # type: ignore[arg-type]


def test_cells_that_the_limit_cuts_off_say_so_and_are_measured_on_resume(monkeypatch):
    config = {**RANDOM, "seq_lens": [256, 512], "time_limit": 1e-9}
    found = units_of(**config)
    assert all(record.status == "skipped" and "--time-limit" in record.reason for u in found for record in u.records)
    cells = {cell.key for cell in e2e.cells(E2EConfig(**{**SMALL, **config}))}  # type: ignore[arg-type]
    assert not cells & {unit.key for unit in found}, "their own keys would count as finished"


def test_a_cell_that_the_limit_cuts_short_keeps_what_is_measured(monkeypatch):
    """The time is over once steps were timed: generations and the cache of transformers are missing."""
    from questbench.experiments.costs import Deadline
    from questbench.measure import busy

    late = []
    monkeypatch.setattr(Deadline, "left", property(lambda self: -1.0 if late else 1e6))
    monkeypatch.setattr(busy, "caution_before", lambda: None)
    real = busy.Watch.look
    monkeypatch.setattr(busy.Watch, "look", lambda self: (real(self), late.append(1)))
    records = [record for unit in units_of(**RANDOM, rivals=["static"], time_limit=1000.0) for record in unit.records]
    assert value(records, "quest", "tpot", stage="total") > 0
    (tpot,) = [r for r in records if r.method == "quest" and r.metric == "tpot"]
    assert any(text.startswith("Measured in part only: the time limit") for text in tpot.warnings)
    missing = {(r.method, r.metric) for r in records if r.status == "skipped"}
    assert missing == {("dense", "tpot_slope"), ("quest", "tpot_slope"), ("transformers_static", "tpot")}


def test_a_limit_within_the_prefill_keeps_the_prefills_that_ended(monkeypatch):
    from questbench.experiments.costs import Deadline

    calls = []
    monkeypatch.setattr(Deadline, "left", property(lambda self: -1.0 if len(calls) > 4 else 1e6))
    real = Deadline.check
    monkeypatch.setattr(Deadline, "check", lambda self: (calls.append(1), real(self)))
    records = [record for unit in units_of(methods=["quest"], time_limit=1000.0) for record in unit.records]
    kinds = {(r.metric, r.status) for r in records}
    assert ("tpot", "skipped") in kinds and ("ttft", "ok") in kinds
    assert sum(r.metric == "ttft" for r in records) == 1, "one of two methods had prefilled"


@pytest.fixture(scope="module")
def rivalled() -> list:
    return records_of(**RANDOM, rivals=["static"])


def test_transformers_attends_by_the_best_of_torch_s_ways(rivalled):
    (record,) = [r for r in rivalled if r.method == "transformers_static" and r.metric == "tpot"]
    assert record.stats["path_of_attention"] in record.stats["paths"]
    assert {OWN, "enable_gqa", "folded", "matmul"} <= set(record.stats["paths"]) | {"enable_gqa"}
    assert record.value > 0


def test_controls_stand_beside_every_time_per_token(rivalled):
    for record in rivalled:
        if record.metric == "tpot" and record.params.get("stage") == "total" and record.method in ("dense", "quest"):
            assert record.stats["probe_bandwidth"] > 0 and record.stats["torch"] > 0


def test_the_probe_of_a_cache_of_transformers_is_judged_round_by_round(rivalled):
    (share,) = [r for r in rivalled if r.method == "transformers_static" and r.metric == "bandwidth_fraction"]
    assert len(share.samples) == share.stats["n"] and share.stats["min"] <= share.value <= share.stats["max"]


@pytest.mark.parametrize("way", ["folded", "matmul"])
def test_a_step_of_transformers_by_another_way_gives_the_same_logits(way):
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)).eval()
    ids = torch.randint(0, 50, (2, 12))
    logits = []
    for name in ("sdpa", register(way, _ways.GROUPED[way])):
        model.set_attn_implementation(name)
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(input_ids=ids[:, :-1], past_key_values=cache)
            logits.append(model(input_ids=ids[:, -1:], past_key_values=cache).logits)
    assert torch.allclose(*logits, atol=1e-5)


def test_a_wrong_way_is_never_chosen(monkeypatch):
    from test_e2e import tiny

    ways = {"folded": lambda *args: _ways.folded(*args) + 1}
    monkeypatch.setattr(_ways, "GROUPED", ways)
    k, v = (torch.randn((1, 2, 32, 16)) for _ in "kv")
    chosen = choose(tiny("llama"), [(k, v)], 20, "cpu")
    assert chosen.path == OWN and "off by" in chosen.left_out["folded"]
