"""The GPU's way of timing a cell, over a stand-in for torch.cuda: every line of it runs, on a clock of the host's.

Captures are recordings of operators (``replaying``). What a real device does with them, ``pytest -m gpu`` tells.
"""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace

import pytest
import torch
from replaying import Recorder, through_the_dispatcher
from test_kernel import records_of, value
from test_kernel_baselines import brought  # noqa: F401

from questbench import kernels
from questbench.experiments.kernel import cell
from questbench.experiments.kernel import clock as clocks
from questbench.experiments.kernel.arms import LayerShape
from questbench.experiments.kernel.clock import DeviceClock
from questbench.measure import gpu_state


class Event:
    def __init__(self, enable_timing=False):
        assert enable_timing

    def record(self):
        self.moment = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, later):
        return 1e3 * (later.moment - self.moment)


class Graphs:
    """``torch.cuda.graph``: records what runs inside. ``fails`` says which captures break."""

    def __init__(self):
        self.fails = lambda number: False
        self.made = 0

    @contextlib.contextmanager
    def capture(self, graph, pool, stream):
        assert (pool, stream) == ("pool", "stream")
        self.made += 1
        if self.fails(self.made):
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        work = []
        graph.replay = lambda: [replay() for replay in work]
        with Recorder() as recorder:
            yield
        work.append(recorder.replay)


@pytest.fixture
def cuda(monkeypatch):
    """A device that is the CPU."""
    if reason := kernels.available()["cpu"]:
        pytest.skip(reason)
    through_the_dispatcher(monkeypatch)
    graphs = Graphs()
    stand_in = {
        "Event": Event,
        "synchronize": lambda *_: None,
        "_sleep": lambda cycles: None,
        "device": lambda device: contextlib.nullcontext(),
        "graph_pool_handle": lambda: "pool",
        "Stream": lambda device: "stream",
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": SimpleNamespace,
        "graph": graphs.capture,
    }
    for name, thing in stand_in.items():
        monkeypatch.setattr(torch.cuda, name, thing)
    monkeypatch.setattr(cell._Cell, "gpu", property(lambda self: True))
    monkeypatch.setattr(clocks, "STEPS_MAX", 3)
    monkeypatch.setattr(cell, "STAGE_ROUNDS", 2)
    for module in (cell, clocks):  # few copies, and little to flush
        monkeypatch.setattr(module, "last_level_cache_bytes", lambda device: 1 << 18)
    monkeypatch.setattr(gpu_state, "identifier", lambda device: "GPU-0")
    monkeypatch.setattr(gpu_state, "caution", lambda device: None)
    return graphs


def totals(records):
    return {r.method: r for r in records if r.metric == "latency" and r.params.get("stage") == "total"}


def test_a_cell_is_measured_by_graphs(cuda, brought):  # noqa: F811
    records = records_of(cache="cold")
    found = totals(records)
    assert set(found) == {"dense", "torch", "brought", "quest", "h2o", "tova", "streaming_llm"}
    assert all(record.status == "ok" and record.value > 0 for record in found.values())
    assert not any("CUDA graph" in text for record in found.values() for text in record.warnings)
    assert value(records, "quest", "tokens_read") == 128 and value(records, "dense", "tokens_read") == 512
    assert value(records, "h2o", "tokens_resident") == 128
    assert {r.params["stage"] for r in records if r.method == "quest" and r.metric == "latency"} == {
        "total",
        "append",
        "score",
        "select",
        "attend",
        "rest",
    }
    assert value(records, "quest", "speedup", baseline="brought") > 0


def test_what_cannot_be_captured_is_timed_eagerly_and_says_so(cuda):
    cuda.fails = lambda number: number == 7  # torch's five ways come first, then dense
    found = totals(records_of(methods=["quest"], stages=False))
    told = {name for name, record in found.items() if any("CUDA graph" in text for text in record.warnings)}
    assert told == {"quest"} and found["quest"].value > 0
    assert "operation not permitted when stream is capturing)" in " ".join(found["quest"].warnings)


def test_events_capture_nothing(cuda):
    clock = DeviceClock(LayerShape(1, 1, 64, 1, 8, 8, torch.float32), "events", cold=True, bandwidth=1e9)
    calls = []
    arm = SimpleNamespace(copies=1, setup=lambda: calls.append("setup"), step=calls.append)
    timed = clock.interleave({"a": arm}, {"a": 100}, rounds_min=3, rounds_max=3, max_seconds=5.0)
    assert cuda.made == 0 and len(timed["a"].seconds) == 3 and clock.notes("a") == []
    assert calls.count("setup") >= 6 and {0, 1, 2} <= {call for call in calls if call != "setup"}


def test_a_throttled_card_is_told_with_every_latency(cuda, monkeypatch):
    monkeypatch.setattr(gpu_state, "caution", lambda device: f"{device} is hot")
    found = totals(records_of(methods=["quest"], stages=False))
    assert all("GPU-0 is hot" in latency.warnings for latency in found.values())


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"clocks_event_reasons.active": "0x0000000000000000"}, None),
        ({"clocks_event_reasons.active": "0x0000000000000001"}, None),
        ({"clocks_event_reasons.active": "0x0000000000000044"}, "power limit, hardware thermal limit"),
        ({"clocks_throttle_reasons.active": "0x8"}, "hardware slowdown"),
        ({"clocks_event_reasons.active": "[N/A]"}, None),
        ({}, None),
    ],
)
def test_what_the_driver_says_of_clocks(answers, told):
    def ask(field, device):
        assert device == "GPU-7"
        if field not in answers:
            raise FileNotFoundError("nvidia-smi")
        return answers[field]

    sentence = gpu_state.caution("GPU-7", ask)
    assert sentence is None if told is None else told in sentence
