"""torch as a baseline: every way gives the right output, a wrong one is left out, the fastest is named."""

from __future__ import annotations

import sys
import time

import pytest
import torch
from test_kernel import records_of, value

from questbench import baselines
from questbench._noise import Noise
from questbench.baselines import _flex, _ways
from questbench.baselines._base import Text, difference, fastest
from questbench.baselines.torch import stores
from questbench.measure import timer

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


@pytest.mark.parametrize("name", _ways.GROUPED)
def test_every_way_for_grouped_heads_is_right(name):
    q, k, v = tensors()
    mask = (torch.arange(40) < 33)[None, None, None]
    for masked in (None, mask):
        got = _ways.GROUPED[name](q, k, v, SCALE, masked)
        assert torch.allclose(got.double(), exact(q, k, v, masked), atol=1e-5)


@pytest.mark.parametrize("name", _ways.UNGROUPED)
def test_every_way_for_heads_of_their_own_is_right(name):
    q, k, v = tensors(kv_heads=8)
    assert torch.allclose(_ways.UNGROUPED[name](q, k, v, SCALE).double(), exact(q, k, v), atol=1e-5)


def test_the_reference_is_right_and_a_difference_is_relative():
    q, k, v = tensors()
    want = _ways.reference(q, k, v, SCALE)
    assert torch.allclose(want.double(), exact(q, k, v), atol=1e-5)
    assert difference(want + 0.1 * want.abs().amax(), want) == pytest.approx(0.1, abs=1e-4)
    assert difference(want * torch.nan, want) == float("inf")


def small(kv_heads: int = 2, copies: int = 2) -> Text:
    noise = Noise(1, kv_heads, 16, torch.float32, "cpu", torch.Generator().manual_seed(0))
    return Text(torch.randn((8, 1, 4, 16)), noise, 256, copies, list)


def test_the_fastest_right_way_is_taken_and_the_others_are_named(monkeypatch):
    def slow(*args):
        time.sleep(0.005)
        return _ways.folded(*args)

    def wrong(*args):
        return _ways.folded(*args) + 1

    def broken(*args):
        raise RuntimeError("no such kernel\nlong story")

    ways = {"quick": _ways.folded, "slow": slow, "wrong": wrong, "broken": broken}
    monkeypatch.setattr(_ways, "UNGROUPED", ways)
    made = baselines.load("torch").ways(small(kv_heads=4))
    found = fastest(made.arms, timer.interleave, made.left_out, max_seconds=0.5)
    assert found.path == "quick" and set(found.trial) == set(found.paths) == {"quick", "slow"}
    assert found.arm is made.arms["quick"]
    assert "off by" in found.left_out["wrong"] and found.left_out["broken"] == "no such kernel"
    assert found.left_out["flex_attention"] == "not compiled: --compile-limit is 0"
    assert "wrong: its result is off by" in found.reason and "; broken: no such kernel" in found.reason


def test_want_of_memory_leaves_no_way_out_but_ends_the_cell(monkeypatch):
    def full(*args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(_ways, "UNGROUPED", {"full": full})
    with pytest.raises(RuntimeError, match="allocate"):
        baselines.load("torch").ways(small(kv_heads=4))


def test_copies_take_turns_whoever_asks():
    text = small(copies=3)
    seen = []
    one, other = (text.arm(lambda q, copy: seen.append(copy)) for _ in "ab")
    for index in range(3):
        one.step(index)
        other.step(index)
    assert seen == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("group", [1, 3])
def test_stored_texts_are_the_noise_whole_and_once_per_query_head(group):
    text = small(copies=2)
    (k, v), _ = stores(text, group)
    parts = list(text.noise.parts(256))
    want = torch.cat([part for part, _ in parts], 2).repeat_interleave(group, 1)
    assert torch.equal(k, want) and torch.equal(v, want.flip(-1))


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
    monkeypatch.setattr(_flex, "_too_slow", [])
    began = time.monotonic()
    why = _flex.compile_aside([sys.executable, "-c", "import time; time.sleep(60)"], 0.3)
    assert time.monotonic() - began < 20 and why == "compiling took longer than 0.3 s (--compile-limit)"
    way, again = _flex.flex(1, 4, 2, 16, torch.zeros(1), 0.2)
    assert way is None and "0.2 s" in again, "what took too long once is not tried again"
    assert _flex.compile_aside([sys.executable, "-c", ""], 30) == ""
    broken = [sys.executable, "-c", "raise RuntimeError('no C++ compiler')"]
    assert _flex.compile_aside(broken, 30) == "torch could not compile it here: RuntimeError: no C++ compiler"


def test_a_baseline_is_made_once_for_a_run(monkeypatch):
    made, load = [], baselines.load
    monkeypatch.setattr(baselines, "load", lambda name: made.append(name) or load(name))
    assert [(name, why) for name, _, why in baselines.of("kernel", "cpu")] == [("torch", None)]
    assert sorted(made) == baselines.names()
