"""scripts/gpu_suite.py: the order of its cells, a process that dies, time that runs out, what it says of the goals."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "gpu_suite.py"
sys.path.insert(0, str(SCRIPT.parent))

import _gpu_cells as cells  # noqa: E402
import gpu_sanitize  # noqa: E402

CHILD = """
import json, sys, time
cells = json.loads(sys.argv[sys.argv.index("--cells") + 1])
print("a library says something", flush=True)
for number, fields in enumerate(cells):
    print(json.dumps({"point": fields}), flush=True)
    if fields[1] == 32768 and fields[2] == 8:
        print("an illegal access was encountered", file=sys.stderr, flush=True)
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


def test_the_grid_is_whole_and_begins_with_the_goals() -> None:
    points = cells.grid(rehearse=False)
    assert len(points) == len(set(points)) == 2 * 3 * 3 * 3
    first = points[: len(cells.GOALS)]
    assert {(p.shape, p.seq_len, p.batch) for p in first} == set(cells.GOALS)
    assert all(point.budget == 2048 for point in first)
    assert not any(point.goal for point in points[len(first) :])
    assert (points[-1].seq_len, points[-1].batch) == (131072, 32)


def test_configurations_are_those_of_the_command() -> None:
    from questbench.experiments import kernel

    for rehearse in (False, True):
        for point in cells.grid(rehearse):
            config = cells.config_of(point, rehearse)
            assert len(kernel.cells(config)) == 1 and config.methods == cells.METHODS
            assert config.device == ("cpu" if rehearse else "cuda")
    assert kernel.heads(cells.config_of(cells.grid(True)[0], True))[0] == 4


def test_a_process_that_dies_loses_its_cell_alone(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    monkeypatch.setattr(suite, "__file__", str(child))
    points = cells.grid(rehearse=False)[:8]
    work = suite.Suite(rehearse=True, seconds=60.0)
    work.measure(points)
    ended = {point: work.cells[point]["status"] for point in points}
    assert set(work.cells) == set(points)
    for point, status in ended.items():
        if (point.seq_len, point.batch) == (32768, 8):
            assert status == "crashed" and "9" in work.cells[point]["reason"]
            assert "an illegal access" in work.cells[point]["said"][-1]
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


def test_goals_say_what_was_reached_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    def cell(seq_len: int, batch: int, status: str = "ok", **speedups: float) -> dict:
        records = [
            {"method": method, "metric": "speedup", "baseline": "flashinfer", "value": value}
            for method, value in speedups.items()
        ]
        where = {"shape": cells.MHA, "seq_len": seq_len, "batch": batch, "budget": 2048}
        return {**where, "status": status, "reason": "why", "records": records}

    measured = [
        cell(32768, 1, quest=8.0, dense=0.97),
        cell(131072, 1, status="failed"),
        cell(8192, 1, dense=0.5),
        cell(8192, 8, status="not run"),
    ]
    found = [(goal["what"], goal["seq_len"], goal["goal"], goal["reached"]) for goal in cells.goals(measured)]
    assert found == [
        ("quest", 32768, 7.03, 8.0),
        ("dense", 32768, 0.9, 0.97),
        ("quest", 131072, 12.0, None),
        ("dense", 131072, 0.9, None),
        ("dense", 8192, 0.9, 0.5),
    ]
    cells.summary({"cells": measured})
    shown = capsys.readouterr().out
    assert "8.00" in shown and "7.03" in shown and "failed: why" in shown and "not run" in shown


def child(tmp_path: Path, text: str) -> str:
    """A script that stands for the suite's own where it starts itself."""
    path = tmp_path / "child.py"
    path.write_text(text)
    return str(path)


def alive(number: int) -> bool:
    """Whether a process runs; one that waits to be buried does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ends(number: int) -> bool:
    """Whether a process is gone within ten seconds: one that is killed ends when the machine finds the time."""
    until = time.monotonic() + 10.0
    while alive(number) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(number)


def started_when_ready(suite: ModuleType, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits begin when the script says that it runs: starting it takes as long as the machine needs."""
    real, sign = suite.start, Path(f"{script}.ready")

    def start(*arguments: object) -> object:
        sign.unlink(missing_ok=True)
        process = real(*arguments)
        until = time.monotonic() + 60.0
        while not sign.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        return process

    monkeypatch.setattr(suite, "start", start)


READY = """
import json, pathlib, subprocess, sys, time
def ready():
    pathlib.Path(sys.argv[0] + ".ready").touch()
"""
SLEEPER = f"""{READY}
started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
pathlib.Path(sys.argv[0] + ".pid").write_text(str(started.pid))
print("working", flush=True)
ready()
time.sleep(100)
"""
HANGING = f"""{READY}
ready()
for fields in json.loads(sys.argv[sys.argv.index("--cells") + 1]):
    print(json.dumps({{"point": fields}}), flush=True)
    if fields[2] == 8:
        time.sleep(100)
    print(json.dumps({{"point": fields, "cell": {{"status": "ok", "reason": None, "seconds": 1.0}}}}), flush=True)
"""


def test_a_step_that_takes_too_long_ends_with_all_that_it_started(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = child(tmp_path, SLEEPER)
    started_when_ready(suite, script, monkeypatch)
    monkeypatch.setitem(suite.LIMITS, "tests", 1.0)
    work = suite.Suite(rehearse=True, seconds=60.0)
    assert not work.step("tests", [sys.executable, script])
    assert work.steps[0]["ended"] == "not finished within 1 s" and "working" in work.steps[0]["tail"]
    assert "KeyboardInterrupt" in "".join(
        work.steps[0]["tail"]
    )  # as pytest is asked to end: it says what failed so far
    assert ends(int(Path(f"{script}.pid").read_text()))


def test_a_cell_that_hangs_is_ended_and_the_next_one_measured(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = child(tmp_path, HANGING)
    started_when_ready(suite, script, monkeypatch)
    monkeypatch.setattr(suite, "__file__", script)
    monkeypatch.setattr(suite, "CELL_MOST", 1.0)
    points = [cells.Point(cells.MHA, 8192, batch, 2048) for batch in (1, 8, 32)]
    work = suite.Suite(rehearse=True, seconds=60.0)
    work.measure(points)
    assert [work.cells[point]["status"] for point in points] == ["ok", "crashed", "ok"]
    assert "no end within 1 s" in work.cells[points[1]]["reason"]


def test_what_there_is_stands_in_a_file_before_the_end(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    out = tmp_path / "gpu.json"

    def stop(self: object, chosen: object) -> None:
        work.step("build", [sys.executable, "-c", "print('made')"])
        seen.append(json.loads((tmp_path / "gpu.partial.json").read_text()))
        raise RuntimeError("a mistake of the suite itself")

    monkeypatch.setattr(suite.Suite, "steps_in_order", stop)
    work = suite.Suite(rehearse=True, seconds=60.0)
    with pytest.raises(RuntimeError):
        work.run(out)
    assert seen[0]["steps"][0]["ended"] == "ok"
    assert json.loads(out.read_text())["steps"] == seen[0]["steps"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json"]


def test_kernels_that_do_not_compile_leave_nothing_to_measure(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = suite.start
    monkeypatch.setattr(suite, "start", lambda command, *rest: real([sys.executable, "-c", "raise SystemExit(3)"]))
    work = suite.Suite(rehearse=True, seconds=60.0)
    assert work.run(tmp_path / "gpu.json") == 1
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert [step["name"] for step in result["steps"]] == ["build"]
    assert {(cell["status"], cell["reason"]) for cell in result["cells"]} == {("not run", "the kernels were not built")}


def test_an_earlier_file_is_gone_on_with(suite: ModuleType) -> None:
    points = cells.grid(rehearse=False)[:3]
    earlier = suite.Suite(rehearse=True, seconds=60.0)
    for point, status in zip(points, ("ok", "failed", "not run"), strict=True):
        earlier.cells[point] = {"status": status, "reason": None, "seconds": 1.0, "records": []}
    result = json.loads(json.dumps(earlier.result({"gpus": [], "git": None})))
    later = suite.Suite(rehearse=True, seconds=60.0)
    later.take_over(result)
    assert later.cells == {points[0]: earlier.cells[points[0]]}


def test_the_sanitizer_looks_at_our_kernels_alone(tmp_path: Path) -> None:
    """A pattern that fits no kernel would call everything clean."""
    from questbench.kernels import _build_cuda

    given = gpu_sanitize.command("compute-sanitizer", "racecheck")
    pattern = given[given.index("--kernel-regex") + 1]
    assert pattern.startswith("kns=")
    if _build_cuda.toolkit() is None:
        pytest.skip("no nvcc here")
    built = _build_cuda.build_cuda(["sm_90"], sources=[_build_cuda.kernel_sources() / "cuda" / "mass.cu"])
    names = built.path.read_bytes()
    found = {name for name in names.decode("latin-1").split("\0") if name.startswith("_Z") and "mass_kernel" in name}
    assert found and all(pattern.removeprefix("kns=") in name for name in found)


def test_the_sanitizers_see_every_op(monkeypatch: pytest.MonkeyPatch) -> None:
    from questbench import kernels
    from questbench.kernels._operators import OPERATORS

    watched = Mock(wraps=kernels.load("cpu"))
    monkeypatch.setattr(kernels, "load", lambda name: watched)
    assert gpu_sanitize.exercise("cpu") > 10
    assert {called for called, *_ in watched.method_calls} == set(OPERATORS)


def test_the_sanitizers_run_side_by_side_and_one_that_finds_something_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "import sys, time; me = sys.argv[1]; print(me); time.sleep(100 * (me == 'c')); sys.exit(me == 'b')"
    monkeypatch.setattr(gpu_sanitize, "command", lambda sanitizer, tool: [sys.executable, "-c", text, tool])
    monkeypatch.setattr(gpu_sanitize.shutil, "which", lambda name: name)
    real = gpu_sanitize.start

    def start(command: list[str], **more: str) -> object:
        process = real(command, **more)
        if command[-1] != "c":
            process.wait(60)  # what ends by itself ends before the time is over, on a busy machine too
        return process

    monkeypatch.setattr(gpu_sanitize, "start", start)
    for tools, seconds, ended in (("a", 30, 0), ("ab", 30, 1), ("ac", 0.5, 1)):
        monkeypatch.setattr(sys, "argv", ["x", *(f"--tool={tool}" for tool in tools), f"--seconds={seconds}"])
        assert gpu_sanitize.main() == ended
        shown = capsys.readouterr().out
        assert "a: clean" in shown
        assert ("b: exit code 1" in shown) == ("b" in tools) and ("c: not finished" in shown) == ("c" in tools)


def test_every_test_for_a_device_is_in_a_folder_that_the_suite_runs(suite: ModuleType) -> None:
    tests = Path(__file__).resolve().parent
    marked = [path for path in tests.rglob("*.py") if "pytest.mark." + "gpu" in path.read_text(encoding="utf-8")]
    assert {path.relative_to(tests).parts[0] for path in marked} == set(suite.GPU_TESTS)
