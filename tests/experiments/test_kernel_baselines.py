"""Baselines that backends bring: the fastest right way is taken and named, a wrong one is left out, memory decides."""

from __future__ import annotations

import pytest
import torch
from test_kernel import records_of, value

from questbench import kernels
from questbench.errors import CellError, UsageError
from questbench.experiments import costs
from questbench.experiments.kernel import baselines, cell, memory
from questbench.experiments.kernel.arms import LayerShape
from questbench.experiments.kernel.memory import Need, fitting
from questbench.kernels.reference import ReferenceOps
from questbench.methods._make import make


class Brought(ReferenceOps):
    """A backend with three dense ways: one right, one slower, one wrong."""

    device, baseline = "cpu", True
    name = "brought"
    wrong = ("wrong",)

    def dense_paths(self, q, paged, scale):
        want = self.attend(q, paged, scale)

        def right(query, keys, values, out):
            out.copy_(self.attend(query, paged._replace(k=keys, v=values), scale))

        def slow(query, keys, values, out):
            for _ in range(4):
                right(query, keys, values, out)

        def wrong(query, keys, values, out):
            out.copy_(want + 1)

        ways = {"right": right, "slow": slow, "wrong": wrong}
        return {name: ways[name] for name in ways if name not in self.left}, {"none": "no such chip"}

    left: tuple = ()


@pytest.fixture
def brought(monkeypatch):
    monkeypatch.setattr(Brought, "left", ())
    monkeypatch.setattr(baselines, "SECONDS", 0.3)
    monkeypatch.setattr(cell, "last_level_cache_bytes", lambda device: 1 << 18)
    real = kernels.load_class, kernels.load, kernels.available
    monkeypatch.setattr(kernels, "names", lambda: ["cpu", "brought"])
    monkeypatch.setattr(kernels, "load_class", lambda name: Brought if name == "brought" else real[0](name))
    monkeypatch.setattr(kernels, "load", lambda name: Brought() if name == "brought" else real[1](name))
    monkeypatch.setattr(kernels, "available", lambda: {"cpu": None, "brought": None})
    return Brought


def test_the_fastest_right_way_is_named_and_compared_with(brought):
    records = records_of(methods=["quest"], stages=False)
    (latency,) = [r for r in records if r.method == "brought" and r.params.get("stage") == "total"]
    assert latency.status == "ok" and latency.backend == "brought"
    assert latency.method_args == {"path": "right"} and latency.stats["path"] == "right"
    assert set(latency.stats["paths"]) == {"right", "slow"}
    assert "wrong: its result is off by" in latency.stats["left_out"] and "no such chip" in latency.stats["left_out"]
    assert value(records, "quest", "speedup", baseline="brought") > 0
    assert value(records, "dense", "speedup", baseline="brought") > 0
    assert value(records, "brought", "bandwidth_fraction") > 0


def test_a_baseline_without_a_way_is_a_skipped_record(brought, monkeypatch):
    monkeypatch.setattr(brought, "left", ("right", "slow"))
    records = records_of(methods=["quest"], stages=False)
    (latency,) = [r for r in records if r.method == "brought" and r.params["stage"] == "total"]
    assert (latency.status, latency.value) == ("skipped", None) and "off by" in latency.reason
    assert not [r for r in records if r.params.get("baseline") == "brought"]


def test_one_that_does_not_work_here_says_why(brought, monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda: {"cpu": None, "brought": "it has a cold."})
    (latency,) = [r for r in records_of(methods=["quest"], stages=False) if r.method == "brought"]
    assert (latency.status, latency.reason) == ("skipped", "it has a cold.")


def need(device="cuda", shared=True, batch=1, seq_len=32768):
    shape = LayerShape(32, 8, 128, batch, seq_len, 16, torch.bfloat16, device=device)
    chosen = {name: make(name, 2048) for name in ("dense", "quest", "h2o")}
    return Need(shape, chosen, {"dense": 2, "quest": 5, "h2o": 9}, shared, baselines=1)


def test_shared_pages_are_counted_once():
    text, entry = 32768, 2 * 8 * 128 * 2
    one = need()
    assert (one.shared_copies, one.forks) == (5, 3)
    room = 3 * (64 + 32)
    assert one.own == int(5 * (text + room) * entry * (1 + 1 / 16)) + 9 * 2048 * entry
    assert one.torch == 2 * text * entry
    assert need("cpu", shared=False).own == (2 + 5) * text * entry + 9 * 2048 * entry
    assert need("cpu", shared=False).torch == 2 * text * entry * 5


def test_memory_decides_whether_torch_s_attention_or_the_cell_is_left_out(monkeypatch):
    wanted = need()
    scratch = memory.SCRATCH["cuda"]
    for free, outcome in ((wanted.own + wanted.torch, True), (wanted.own, False)):
        monkeypatch.setattr(costs, "free_bytes", lambda device, free=free: int(1.11 * free) + scratch)
        reason = fitting(wanted)
        assert reason is None if outcome else "another" in reason
    monkeypatch.setattr(costs, "free_bytes", lambda device: wanted.own // 2)
    with pytest.raises(CellError, match="this cell needs about"):
        fitting(wanted)


@pytest.mark.parametrize("changes", [{"timing": "graph"}, {"timing": "sundial"}, {"device": "tpu"}])
def test_ways_of_timing_that_make_no_sense_are_refused(changes):
    with pytest.raises(UsageError):
        records_of(**changes)


def test_a_backend_of_another_device_is_refused():
    with pytest.raises(UsageError, match="works on cuda, not on cpu"):
        records_of(backend="flashinfer")
