"""``ls`` and ``doctor``: what they list is what there is, in three formats."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from questbench import registry

PACKAGES = {
    "methods": "questbench.methods",
    "tasks": "questbench.tasks",
    "backends": "questbench.kernels",
    "baselines": "questbench.baselines",
    "plots": "questbench.report.plots",
}


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("what", PACKAGES)
def test_lists_every_file_of_the_folder(what: str, questbench: Callable[..., Any]) -> None:
    ended = questbench("ls", what, "--json")
    assert ended.code == 0
    listed = rows(ended.out)
    assert [row["name"] for row in listed] == registry.names(PACKAGES[what])
    assert all(row["summary"] and not row["summary"].startswith("cannot be read") for row in listed)
    assert questbench("ls", what, "--markdown").out.startswith(f"### {what}\n")


def test_parameters_are_the_fields(questbench: Callable[..., Any]) -> None:
    methods = {row["name"]: row for row in rows(questbench("ls", "methods", "--json").out)}
    assert methods["streaming_llm"]["parameters"] == {"sinks": "4", "positions": "cache"}
    assert "yardstick" in methods["oracle"]["summary"]
    assert "yardstick" not in methods["quest"]["summary"]


def test_parameters_of_bases_are_listed_and_those_that_flags_set_are_not(questbench: Callable[..., Any]) -> None:
    from questbench.tasks._base import Task

    for row in rows(questbench("ls", "tasks", "--json").out):
        task = registry.load("questbench.tasks", row["name"], Task, kind="task")
        fields = dataclasses.fields(task) if dataclasses.is_dataclass(task) else ()
        assert set(row["parameters"]) == {field.name for field in fields} - {"data", "online", "sha256"}, row["name"]


def test_summaries_are_plain_sentences(questbench: Callable[..., Any]) -> None:
    baselines = {row["name"]: row["summary"] for row in rows(questbench("ls", "baselines", "--json").out)}
    assert not any("`" in text for text in baselines.values())
    assert baselines["flashinfer"].startswith("FlashInfer: "), "what is behind the link belongs to the sentence"


def test_a_narrow_terminal_keeps_what_tells_plug_ins_apart(
    questbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    narrow = questbench("ls", "methods").out
    assert "arxiv" not in narrow
    assert "Left out for lack of width: source" in narrow
    monkeypatch.setenv("COLUMNS", "160")
    assert "arxiv" in questbench("ls", "methods").out


def test_models_are_the_shapes(questbench: Callable[..., Any]) -> None:
    from questbench.models.shapes import SHAPES

    listed = rows(questbench("ls", "models", "--json").out)
    # Models of installed packages depend on the machine.
    own = [row["name"] for row in listed if not row["name"].startswith("pip:")]
    assert own == ["constructed", "needle", *(f"shape:{name}" for name in SHAPES)]
    llama = next(row for row in listed if row["name"] == "shape:llama-3.1-8b")
    assert (llama["heads"], llama["kv_heads"], llama["kv_bytes_per_token"]) == (32, 8, 131072)


def test_shapes_are_consistent() -> None:
    from questbench.models.shapes import SHAPES

    for name, shape in SHAPES.items():
        assert shape.heads % shape.kv_heads == 0, name
        assert shape.head_dim in (64, 96, 128, 256), name
        assert shape.hidden % shape.heads == 0 or shape.architecture in ("gemma2", "qwen3"), name


def test_ls_alone_lists_all(questbench: Callable[..., Any]) -> None:
    out = questbench("ls").out
    assert all(f"{what}\n" in out for what in [*PACKAGES, "models"])


def test_broken_plugin_does_not_break_the_list(
    questbench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import questbench.methods as package

    (tmp_path / "broken.py").write_text("def :\n")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    ended = questbench("ls", "methods")
    assert ended.code == 0
    assert "cannot be read" in ended.out
    assert "quest" in ended.out


def test_doctor(questbench: Callable[..., Any]) -> None:
    ended = questbench("doctor", "--json")
    assert ended.code == 0
    checks = {row["what"]: row for row in rows(ended.out)}
    assert checks["Python"]["state"] == "ok"
    assert checks["torch"]["state"] == "ok"
    assert {f"backend {name}" for name in registry.names("questbench.kernels")} <= set(checks)
    assert all(row["state"] in ("ok", "missing", "optional") for row in checks.values())
    assert all(row["todo"] for row in checks.values() if row["state"] == "missing")


def test_doctor_shows_what_was_chosen_for_this_machine(
    questbench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from questbench import _compiling
    from questbench.cli import doctor

    def shown() -> list[tuple[str, str]]:
        """These checks alone: each whole doctor asks another process for its torch."""
        checks = list(doctor._choices())
        assert {check.what for check in checks} == {"kernel choice"}
        return [(check.state, check.found) for check in checks]

    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path))
    monkeypatch.delenv("QUESTBENCH_CHOICE")
    assert shown() == [("optional", "none measured on this processor")]
    (tmp_path / "cpu-1").mkdir()
    default = {"dense_single": {"order": "together", "ahead": "1"}}
    kept = {
        "processor": _compiling.processor_name(),
        "threads": 2,
        "seconds": 3.5,
        "choice": {"dense_single": {"order": "together", "ahead": "4"}},
        "default": default,
    }
    file = tmp_path / "cpu-1" / "choice-2.json"
    file.write_text(json.dumps(kept))
    assert shown() == [("ok", "2 threads, measured in 3.5 s: dense_single ahead=4")]
    whole = rows(questbench("doctor", "--json").out)
    assert [(row["state"], row["found"]) for row in whole if row["what"] == "kernel choice"] == shown()
    monkeypatch.setenv("QUESTBENCH_CHOICE", "order=apart")
    assert shown()[0] == ("ok", "QUESTBENCH_CHOICE forces order=apart")
    monkeypatch.setenv("QUESTBENCH_CHOICE", "order=sideways")
    assert shown()[0][0] == "missing"
    monkeypatch.delenv("QUESTBENCH_CHOICE")
    for broken in ("{", json.dumps({**kept, "processor": "another"}), json.dumps({**kept, "choice": [1]})):
        file.write_text(broken)
        assert shown() == [("optional", "none measured on this processor")]


def test_doctor_sees_what_is_missing(
    questbench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path / "file" / "cache"))
    ended = questbench("doctor", "--out", tmp_path / "file" / "results", "--json")
    assert ended.code == 0
    gone = {row["what"]: row["todo"] for row in rows(ended.out) if row["state"] == "missing"}
    assert "apt-get install g++" in gone["C++ compiler"]
    assert "QUESTBENCH_CACHE" in gone["cache folder"]
    assert "--out" in gone["results folder"]


@pytest.mark.parametrize(("devices", "told"), [(True, True), (False, False)])
def test_doctor_says_what_cuda_needs_where_there_is_a_gpu(
    devices: bool, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from questbench.cli import doctor
    from questbench.kernels import _build_cuda

    monkeypatch.setattr(_build_cuda, "toolkit", lambda: None)
    monkeypatch.setenv("PATH", "")
    checks = {check.what: check for check in doctor._cuda(devices, None)}
    assert set(checks) == {"torch for CUDA", "CUDA compiler", "compute-sanitizer"}
    assert all(check.state == "optional" and bool(check.todo) is told for check in checks.values())
    monkeypatch.undo()
    assert next(iter(doctor._cuda(devices, "13.0"))).state == "ok"


def test_build_knows_its_devices(questbench: Callable[..., Any]) -> None:
    ended = questbench("build", "--device", "abacus")
    assert ended.code == 2 and "cpu, cuda" in ended.err


def test_doctor_runs_nothing_of_the_current_folder(
    questbench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "torch", "typing", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.environ["PYTHONPATH"] + os.pathsep)  # an empty entry is the current folder
    checks = {row["what"]: row for row in rows(questbench("doctor", "--json").out)}
    assert not (tmp_path / "ran").exists()
    assert checks["backend reference"]["state"] == "ok"


def test_child_processes_of_the_command_line_are_started_in_one_place() -> None:
    import questbench.cli

    folder = Path(questbench.cli.__file__).parent
    starting = [path.name for path in folder.glob("*.py") if "subprocess" in path.read_text()]
    assert starting == ["_child.py"]


def test_ls_runs(questbench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    from questbench.records import store
    from questbench.records.schema import ResultRecord

    assert "no runs" in questbench("ls", "runs", "--out", tmp_path / "none").err
    paths = []
    for code in (0, 130, None):
        with store.create_run(tmp_path, "kernel", ["questbench"], {}, {}) as writer:
            writer.write([ResultRecord("", "kernel", "ok", "quest", {}, "cpu", {}, "latency", "s", 1.0)])
            if code is not None:
                writer.finish(exit_code=code)
        paths.append(writer.path)
    size = (paths[2] / "records.jsonl").stat().st_size
    (paths[2] / "records.jsonl").write_bytes(b"#" * (size - 1) + b"\n")
    ended = questbench("ls", "runs", "--out", tmp_path, "--json")
    assert ended.code == 0
    found = {row["name"]: row for row in rows(ended.out)}
    assert [found[path.name]["state"] for path in paths[:2]] == ["finished", "unfinished"]
    assert found[paths[0].name]["records"] == 1 and found[paths[0].name]["verb"] == "kernel"
    assert "records.jsonl" in found[paths[2].name]["state"]
    assert paths[0].name in questbench("ls", "runs", "--out", tmp_path).out


COMPLETIONS = {
    "questbench ": {"kernel", "accuracy", "report", "ls"},
    "questbench acc": {"accuracy"},
    "questbench kernel --pa": {"--page-size"},
    "questbench nonsense --": set(),
}


@pytest.mark.parametrize("line", COMPLETIONS)
def test_completion(line: str, tmp_path: Path) -> None:
    words = line.split(" ")
    settings = {"_QUESTBENCH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "questbench"],
        env={**os.environ, **settings},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    offered = set(done.stdout.split())
    assert COMPLETIONS[line] <= offered and (COMPLETIONS[line] or not offered), done.stderr
    assert not done.stderr
