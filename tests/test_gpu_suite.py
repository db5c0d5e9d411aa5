"""scripts/gpu_suite.py: the order of its cells, a process that dies, time that runs out, what it says of the goals."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "gpu_suite.py"

CHILD = """
import json, sys, time
cells = json.loads(sys.argv[sys.argv.index("--cells") + 1])
for number, fields in enumerate(cells):
    print(json.dumps({"point": fields}), flush=True)
    if fields[1] == 32768 and fields[2] == 8:
        sys.exit(9)
    if fields[2] == 32 and number == 1:  # no time for it
        sys.exit(0)
    print(json.dumps({"point": fields, "cell": {"status": "ok", "reason": None, "seconds": 1.0}}), flush=True)
"""


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_suite", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_suite", module)
    spec.loader.exec_module(module)
    return module


def test_the_grid_is_whole_and_begins_with_the_goals(suite: ModuleType) -> None:
    points = suite.grid(rehearse=False)
    assert len(points) == len(set(points)) == 2 * 3 * 3 * 3
    first = points[: len(suite.GOALS)]
    assert {(p.shape, p.seq_len, p.batch) for p in first} == set(suite.GOALS)
    assert all(point.budget == 2048 for point in first)
    assert not any(point.goal for point in points[len(first) :])
    assert (points[-1].seq_len, points[-1].batch) == (131072, 32)


def test_configurations_are_those_of_the_command(suite: ModuleType) -> None:
    from questbench.experiments import kernel

    for rehearse in (False, True):
        for point in suite.grid(rehearse):
            config = suite.config_of(point, rehearse)
            assert len(kernel.cells(config)) == 1 and config.methods == suite.METHODS
            assert config.device == ("cpu" if rehearse else "cuda")
    assert kernel.heads(suite.config_of(suite.grid(True)[0], True))[0] == 4


def test_a_process_that_dies_loses_its_cell_alone(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    monkeypatch.setattr(suite, "__file__", str(child))
    points = suite.grid(rehearse=False)[:8]
    work = suite.Suite(rehearse=True, seconds=60.0)
    work.measure(points)
    ended = {point: work.cells[point]["status"] for point in points}
    assert set(work.cells) == set(points)
    for point, status in ended.items():
        if (point.seq_len, point.batch) == (32768, 8):
            assert status == "crashed" and "9" in work.cells[point]["reason"]
    assert "ok" in ended.values() and "not run" in ended.values()
    late = suite.Suite(rehearse=True, seconds=0.0)
    late.measure(points)
    assert {cell["status"] for cell in late.cells.values()} == {"not run"}


def test_steps_end_in_the_file_whatever_their_end(suite: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suite.LIMITS, "tests", 0.5)
    work = suite.Suite(rehearse=True, seconds=60.0)
    work.step("build", [sys.executable, "-c", "print('made')"])
    work.step("sanitize", [sys.executable, "-c", "import sys; print('leak'); sys.exit(7)"])
    work.step("tests", [sys.executable, "-c", "import time; time.sleep(60)"])
    assert [step["ended"] for step in work.steps] == ["ok", "exit code 7", "not finished within 0 s"]
    assert work.steps[1]["tail"] == ["leak"]
    result = work.result({"gpus": [{"name": "NVIDIA X"}], "git": {"commit": "c", "dirty": False}})
    assert not result["passed"] and result["gpu"] == ["NVIDIA X"] and json.dumps(result)


def test_goals_say_what_was_reached_and_what_is_missing(suite: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def cell(seq_len: int, batch: int, status: str = "ok", **speedups: float) -> dict:
        records = [
            {"method": method, "metric": "speedup", "baseline": "flashinfer", "value": value}
            for method, value in speedups.items()
        ]
        where = {"shape": suite.MHA, "seq_len": seq_len, "batch": batch, "budget": 2048}
        return {**where, "status": status, "reason": "why", "records": records}

    cells = [
        cell(32768, 1, quest=8.0, dense=0.97),
        cell(131072, 1, status="failed"),
        cell(8192, 1, dense=0.5),
        cell(8192, 8, status="not run"),
    ]
    found = [(goal["what"], goal["seq_len"], goal["goal"], goal["reached"]) for goal in suite.goals(cells)]
    assert found == [
        ("quest", 32768, 7.03, 8.0),
        ("dense", 32768, 0.9, 0.97),
        ("quest", 131072, 12.0, None),
        ("dense", 131072, 0.9, None),
        ("dense", 8192, 0.9, 0.5),
    ]
    suite.summary({"cells": cells})
    shown = capsys.readouterr().out
    assert "8.00" in shown and "7.03" in shown and "failed: why" in shown and "not run" in shown
