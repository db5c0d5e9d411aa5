"""Baselines in a cell: the fastest right way is taken and named, a wrong one is left out, memory decides."""

from __future__ import annotations

import pytest
from test_kernel import records_of, value

from questbench import baselines, registry
from questbench.baselines import _base
from questbench.baselines._base import Baseline, Ways, right
from questbench.errors import CellError, UsageError
from questbench.experiments import costs, kernel
from questbench.experiments.costs import Deadline
from questbench.experiments.engine import Turn
from questbench.experiments.kernel import KernelConfig, cell


class Brought(Baseline):
    """A library with three ways over our pages: one right, one slower, one wrong."""

    verbs = ("kernel",)
    name = "brought"
    left: tuple = ()
    why = None

    def unavailable(self):
        return self.why

    def ways(self, text):
        layers = text.pages()
        want = self.attend(text, layers[0], text.queries[0])

        def good(q, copy):
            return self.attend(text, layers[copy], q)

        def slow(q, copy):
            for _ in range(4):
                out = good(q, copy)
            return out

        def wrong(q, copy):
            return want + 1

        ways = {"right": good, "slow": slow, "wrong": wrong}
        arms = {name: text.arm(ways[name]) for name in ways if name not in self.left}
        left_out = {"none": "no such chip"}
        return Ways(right(arms, want, left_out), left_out)

    @staticmethod
    def attend(text, layer, q):
        return layer.ops.attend(q, layer.paged, text.scale)


@pytest.fixture
def brought(monkeypatch):
    monkeypatch.setattr(Brought, "left", ())
    monkeypatch.setattr(_base, "SECONDS", 0.3)
    monkeypatch.setattr(cell, "last_level_cache_bytes", lambda device: 1 << 18)
    real, known = baselines.load, registry.names
    mine = ["torch", "brought"]
    monkeypatch.setattr(registry, "names", lambda package: mine if package == baselines.PACKAGE else known(package))
    monkeypatch.setattr(baselines, "load", lambda name: Brought() if name == "brought" else real(name))
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
    monkeypatch.setattr(brought, "why", "it has a cold.")
    (latency,) = [r for r in records_of(methods=["quest"], stages=False) if r.method == "brought"]
    assert (latency.status, latency.reason) == ("skipped", "it has a cold.")


def test_memory_decides_whether_torch_s_attention_or_the_cell_is_left_out(monkeypatch):
    """On a GPU, where what stores the text anew is left out first; the cell is not run here."""
    config = KernelConfig(seq_lens=[32768], budgets=[2048], methods=["quest", "h2o"])
    monkeypatch.setattr(cell, "last_level_cache_bytes", lambda device: 1 << 20)
    monkeypatch.setattr(cell._Cell, "gpu", property(lambda self: True))
    turn = Turn({}, print, Deadline(), None)
    made = cell._Cell(config, kernel.cells(config)[0], turn)
    own, anew = [], {"torch": baselines.load("torch"), "flashinfer": baselines.load("flashinfer")}
    monkeypatch.setattr(costs, "require", lambda needed, device, **rest: own.append(needed))
    monkeypatch.setattr(costs, "free_bytes", lambda device: 1 << 50)
    assert made._fitting(anew) == {}
    monkeypatch.setattr(costs, "free_bytes", lambda device: own[0] + 1)
    left_out = made._fitting(anew)
    assert set(left_out) == {"torch"} and "another" in left_out["torch"]
    monkeypatch.undo()
    monkeypatch.setattr(costs, "free_bytes", lambda device: own[0] // 2)
    with pytest.raises(CellError, match="this cell needs about"):
        cell._Cell(config, kernel.cells(config)[0], turn)._fitting(anew)


@pytest.mark.parametrize("changes", [{"timing": "graph"}, {"timing": "sundial"}, {"device": "tpu"}])
def test_ways_of_timing_that_make_no_sense_are_refused(changes):
    with pytest.raises(UsageError):
        records_of(**changes)


def test_a_backend_of_another_device_is_refused():
    with pytest.raises(UsageError, match="works on cuda, not on cpu"):
        records_of(backend="cuda")


def test_a_baseline_is_no_backend():
    with pytest.raises(UsageError, match="baseline, not a backend"):
        records_of(backend="flashinfer")
