"""torch as a baseline: every way gives the right output, a wrong one is left out, the fastest is named."""

from __future__ import annotations

import sys
import time

import pytest
import torch
from test_kernel import records_of, value

from questbench.experiments import torch_flex, torch_ways
from questbench.experiments.kernel import baselines
from questbench.experiments.kernel.arms import Inputs, LayerShape
from questbench.experiments.kernel.baselines import Stores, torch_baseline
from questbench.experiments.kernel.clock import HostClock

SCALE = 0.3


def tensors(rows: int = 2, heads: int = 8, kv_heads: int = 2, length: int = 40, dim: int = 16):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn((rows, heads, dim), generator=generator)
    k, v = (torch.randn((rows, kv_heads, length, dim), generator=generator) for _ in "kv")
    return q, k, v


def exact(q, k, v, mask=None):
    group = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("bhd,bhtd->bht", q.double(), k) * SCALE
    if mask is not None:
        scores = scores.masked_fill(~mask[:, :, 0], float("-inf"))
    return torch.einsum("bht,bhtd->bhd", scores.softmax(-1), v)


@pytest.mark.parametrize("name", torch_ways.GROUPED)
def test_every_way_for_grouped_heads_is_right(name):
    q, k, v = tensors()
    mask = (torch.arange(40) < 33)[None, None, None]
    for masked in (None, mask):
        got = torch_ways.GROUPED[name](q, k, v, SCALE, masked)
        assert torch.allclose(got.double(), exact(q, k, v, masked), atol=1e-5)


@pytest.mark.parametrize("name", torch_ways.UNGROUPED)
def test_every_way_for_heads_of_their_own_is_right(name):
    q, k, v = tensors(kv_heads=8)
    assert torch.allclose(torch_ways.UNGROUPED[name](q, k, v, SCALE).double(), exact(q, k, v), atol=1e-5)


def test_the_reference_is_right_and_a_difference_is_relative():
    q, k, v = tensors()
    want = torch_ways.reference(q, k, v, SCALE)
    assert torch.allclose(want.double(), exact(q, k, v), atol=1e-5)
    assert torch_ways.difference(want + 0.1 * want.abs().amax(), want) == pytest.approx(0.1, abs=1e-4)
    assert torch_ways.difference(want * torch.nan, want) == float("inf")


def small(kv_heads: int = 2) -> Inputs:
    return Inputs(LayerShape(4, kv_heads, 16, 1, 256, 16, torch.float32), seed=0)


def test_the_fastest_right_way_is_taken_and_the_others_are_named(monkeypatch):
    monkeypatch.setattr(baselines, "SECONDS", 0.5)

    def slow(*args):
        time.sleep(0.005)
        return torch_ways.folded(*args)

    def wrong(*args):
        return torch_ways.folded(*args) + 1

    def broken(*args):
        raise RuntimeError("no such kernel\nlong story")

    ways = {"quick": torch_ways.folded, "slow": slow, "wrong": wrong, "broken": broken}
    found = torch_baseline(small(kv_heads=4), 2, HostClock(), 1 << 15, ways)
    assert found.path == "quick" and set(found.trial) == {"quick", "slow"}
    assert "off by" in found.left_out["wrong"] and found.left_out["broken"] == "no such kernel"
    assert found.left_out["flex_attention"] == "not compiled: --compile-limit is 0"


def test_copies_take_turns_whoever_asks():
    stores = Stores(small(), 3, expanded=False)
    seen = [stores.turn()[0].data_ptr() for _ in range(6)]
    assert len(set(seen[:3])) == 3 and seen[:3] == seen[3:]


def test_the_time_shown_is_none_of_those_that_chose_the_way():
    records = [r for r in records_of(methods=["quest"], stages=False) if r.method == "torch"]
    (total,) = [r for r in records if r.params.get("stage") == "total"]
    assert total.stats["path"] in total.stats["paths"]
    ways = {
        r.params["stage"].removeprefix("way: "): r for r in records if r.params.get("stage", "").startswith("way: ")
    }
    assert set(ways) == {"enable_gqa", "folded", "matmul", "matmul, keys first", "expanded", "flex_attention"}
    assert ways["flex_attention"].status == "skipped" and ways["flex_attention"].reason
    chosen = ways[total.stats["path"]]
    assert chosen.stats["trial"] and not set(chosen.samples) & set(total.samples)


def test_controls_stand_in_every_cell():
    """What a comparison of two runs needs to tell a slower machine from slower code."""
    records = records_of(methods=["quest"], stages=False)
    assert value(records, "torch", "latency", stage="total") > 0
    for record in records:
        if record.metric == "latency" and record.params.get("stage") == "total":
            assert record.stats["probe_bandwidth"] > 0 and record.stats["torch"] > 0


def test_a_compilation_ends_at_its_limit(monkeypatch):
    monkeypatch.setattr(torch_flex, "_too_slow", [])
    began = time.monotonic()
    why = torch_flex.compile_aside([sys.executable, "-c", "import time; time.sleep(60)"], 0.3)
    assert time.monotonic() - began < 20 and why == "compiling took longer than 0.3 s (--compile-limit)"
    way, again = torch_flex.flex(1, 4, 2, 16, torch.zeros(1), 0.2)
    assert way is None and "0.2 s" in again, "what took too long once is not tried again"
    assert torch_flex.compile_aside([sys.executable, "-c", ""], 30) == ""
    broken = [sys.executable, "-c", "raise RuntimeError('no C++ compiler')"]
    assert torch_flex.compile_aside(broken, 30) == "torch could not compile it here: RuntimeError: no C++ compiler"
