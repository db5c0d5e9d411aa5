"""The end-to-end experiment over captured loops; replay runs the step, and FlashInfer is one of torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from test_e2e import METHODS, SMALL, value

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "baselines"))
from fake_planned import Device

from questbench.baselines import _loop, flashinfer
from questbench.cache.paging import PagePool
from questbench.experiments import e2e
from questbench.experiments.e2e import E2EConfig
from questbench.models import graph_loop
from questbench.models.shapes import SHAPES, Shape
from questbench.report.tables import tables

GRAPH = {
    **SMALL,
    "model": "shape:tiny",
    "layers": None,
    "cache_fill": "random",
    "loop": "graph",
    "stages": False,
    "methods": ["quest", "h2o"],
    "max_seconds": 0.1,
}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    monkeypatch.setitem(SHAPES, "tiny", Shape("llama", 3, 128, 256, 4, 2, 64, 512, 1e4, 4096))
    monkeypatch.setattr(graph_loop, "capture", found.record)
    monkeypatch.setattr(flashinfer.FlashInfer, "device", "cpu")
    monkeypatch.setattr(flashinfer.FlashInfer, "unavailable", lambda self: None)
    monkeypatch.setattr(flashinfer, "DTYPES", (torch.float32,))
    monkeypatch.setattr(flashinfer, "WORKSPACE_BYTES", 1 << 10)
    library = found.library()
    monkeypatch.setattr(flashinfer, "library", lambda: library)
    flashinfer.workspace.cache_clear()
    return found


def records_of(**changes: object) -> list:
    config = E2EConfig(**{**GRAPH, **changes})  # type: ignore[arg-type]
    return [record for unit in e2e.run(config) for record in unit.records]


def total(records: list, method: str):
    (found,) = [r for r in records if r.method == method and r.metric == "tpot" and r.params.get("stage") == "total"]
    return found


def test_flashinfer_is_a_row_of_its_own_in_the_same_loop(device: Device) -> None:
    records = records_of()
    assert {r.status for r in records} == {"ok"}
    ours, theirs = total(records, "dense"), total(records, "flashinfer")
    assert (ours.backend, theirs.backend) == ("cpu", "flashinfer")
    assert ours.stats["loop"] == theirs.stats["loop"] == "graph"
    assert set(theirs.stats["paths"]) == {"cuda-core", "tensor-core", "xqa"}
    best = min(theirs.stats["paths"], key=theirs.stats["paths"].__getitem__)
    assert theirs.method_args == {"path": best} and theirs.stats["path_of_attention"] == best
    assert len(theirs.samples) == len(ours.samples)
    for method in ("dense", "quest", "h2o"):
        assert value(records, method, "speedup", baseline="flashinfer") > 0
    assert value(records, "flashinfer", "bytes") == value(records, "dense", "bytes")
    assert value(records, "flashinfer", "kv_bytes") == value(records, "dense", "kv_bytes")
    assert not [r for r in records if r.method == "flashinfer" and r.metric.startswith("tokens_r")]
    table = tables(records)[0]
    names = [next(cell.text for cell in row if cell.text in (*METHODS, "flashinfer")) for row in table.rows]
    assert names == ["dense", "flashinfer", "quest", "h2o"]
    assert "x flashinfer" in table.columns and any(best in line for line in table.setup)


def test_the_trial_of_a_baseline_takes_none_of_its_room(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loop stands where those of the methods do when they are timed."""
    seen = []
    trial = _loop.fastest_loop

    def watched(run, made):
        found = trial(run, made)
        seen.append((run.seq_len, found.arm.layers[0].store.held[0]))
        return found

    monkeypatch.setattr(_loop, "fastest_loop", watched)
    records_of(methods=["quest"])
    assert seen and all(held == length + _loop.WARM for length, held in seen)


def test_a_path_that_fails_is_left_out_with_its_reason(device: Device) -> None:
    device.broken.add("xqa")
    device.wrong.add("cuda-core")
    found = total(records_of(methods=["quest"]), "flashinfer")
    assert found.method_args == {"path": "tensor-core"}
    assert "xqa: no kernel for xqa;" in found.stats["left_out"] + ";" and "off by 50" in found.stats["left_out"]
    device.wrong.add("tensor-core")
    found = total(records_of(methods=["quest"]), "flashinfer")
    assert (found.status, found.value) == ("skipped", None) and "tensor-core: its attention is off" in found.reason


def test_without_flashinfer_its_row_says_why(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashinfer.FlashInfer, "unavailable", lambda self: "FlashInfer is not installed")
    records = records_of(methods=["quest"])
    assert "not installed" in total(records, "flashinfer").reason
    assert not [r for r in records if r.params.get("baseline") == "flashinfer"]
    records = records_of(methods=["quest"], loop="eager")
    assert total(records, "dense").stats["loop"] == "eager" and total(records, "flashinfer").status == "skipped"


@pytest.mark.parametrize("page_size", [4, 16])
def test_pages_are_allocated_ahead_for_all_loops(
    device: Device, monkeypatch: pytest.MonkeyPatch, page_size: int
) -> None:
    """A pool that grows moves, and captured steps would read and write where it lay."""
    grown = []
    grow = PagePool._grow
    monkeypatch.setattr(PagePool, "_grow", lambda self, missing: grown.append(missing) or grow(self, missing))
    records = records_of(methods=["quest", "h2o", "tova", "streaming_llm"], page_sizes=[page_size], stages=True)
    assert {r.status for r in records} == {"ok"} and not grown
    h2o_decode = records_of(methods=["h2o"], method_args={"score_from": "decode"}, page_sizes=[page_size])
    assert {r.status for r in h2o_decode} == {"ok"} and not grown


def test_a_model_that_cannot_be_captured_runs_step_by_step(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    from questbench.experiments.e2e.session import Session

    monkeypatch.setattr(graph_loop.GraphLoop, "_unfit", lambda self: "it has experts")
    asked = records_of(methods=["quest"])
    assert {r.status for r in asked} == {"failed"} and all("experts" in r.reason for r in asked)
    monkeypatch.setattr(Session, "captured", True)
    records = records_of(methods=["quest"], loop="auto")
    assert total(records, "quest").stats["loop"] == "eager" and total(records, "quest").status == "ok"
    assert any("Steps ran one by one" in text and "experts" in text for text in total(records, "quest").warnings)
    assert "experts" in total(records, "flashinfer").reason
