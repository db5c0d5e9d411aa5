"""One new file adds a method, a task, a backend or a plot, and nothing else is edited."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from questbench import registry

METHOD = '''
"""Everything: a method that a test wrote."""
from dataclasses import dataclass
from questbench.methods._base import Everything as All, Method

@dataclass(frozen=True)
class Mine(Method):
    """Reads all."""
    window: int = 7

    def select(self, q, layer, ops):
        return All()

    def tokens_visible(self, length, page_size):
        return length

    def bytes_read(self, length, shape):
        return shape.entry_bytes * length
'''
TASK = '''
"""Nothing: a task that a test wrote."""
from questbench.tasks._base import Sample, Task

class Mine(Task):
    """Asks for a word."""

    def sample(self, index, *, length, tokenizer, rng):
        return Sample(f"mine-{index}", "context", " question", ("answer",))

    def score(self, sample, completion):
        return float("answer" in completion)
'''
OTHER = '"""Something: a plug-in that a test wrote."""\n'
KINDS = {
    "methods": ("questbench.methods", METHOD),
    "tasks": ("questbench.tasks", TASK),
    "backends": ("questbench.kernels", OTHER),
    "plots": ("questbench.report.plots", OTHER),
}


def add_file(package: str, name: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new file in the package's folder does, without touching the checkout."""
    (folder / f"{name}.py").write_text(text)
    module = importlib.import_module(package)
    monkeypatch.setattr(module, "__path__", [*module.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, f"{package}.{name}", raising=False)


@pytest.mark.parametrize("what", ["methods", "tasks", "plots"])
def test_new_file_is_listed(
    what: str, questbench: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    package, text = KINDS[what]
    add_file(package, "brand_new", text, tmp_path, monkeypatch)
    ended = questbench("ls", what)
    assert ended.code == 0, ended.err
    assert "brand_new" in ended.out
    assert "a test wrote" in ended.out


def test_new_backend_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, text = KINDS["backends"]
    add_file(package, "brand_new", text, tmp_path, monkeypatch)
    assert "brand_new" in registry.names(package)


def test_new_method_takes_its_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from questbench.methods._make import check_arguments, make

    add_file(*KINDS["methods"][:1], "brand_new", METHOD, tmp_path, monkeypatch)
    check_arguments(["brand_new"], {"window": "3"})
    method = make("brand_new", 64, {"window": "3"})
    assert (method.name, method.budget, method.window) == ("brand_new", 64, 3)


def test_new_task_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from questbench.tasks._make import make_task

    add_file("questbench.tasks", "brand_new", TASK, tmp_path, monkeypatch)
    task = make_task("brand_new")
    assert task.name == "brand_new"


def test_file_with_two_methods_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from questbench.methods._base import Method

    add_file("questbench.methods", "two", METHOD + METHOD.replace("Mine", "Yours"), tmp_path, monkeypatch)
    with pytest.raises(registry.PluginError, match=r"two\.py must define exactly one concrete Method, found 2"):
        registry.load("questbench.methods", "two", Method, kind="method")


def test_entry_points_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_method.py").write_text(METHOD)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[questbench.methods]\ntheirs = their_method\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "theirs" in registry.names("questbench.methods")
    assert registry.load_module("questbench.methods", "theirs", kind="method").__name__ == "their_method"


def test_installed_packages_are_read_once_for_a_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method that is made is looked up by its name, and reading what is installed takes tens of milliseconds."""
    from questbench.methods._make import make

    real, calls = importlib.metadata.entry_points, []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **group: calls.append(group) or real(**group))
    monkeypatch.syspath_prepend(str(tmp_path / "one"))
    for budget in (64, 128, 256):
        make("quest", budget)
    assert calls == [{"group": "questbench.methods"}]
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    make("quest", 64)
    assert len(calls) == 2


def test_a_file_that_comes_later_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = importlib.import_module("questbench.methods")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    assert "late" not in registry.names("questbench.methods")
    (tmp_path / "late.py").write_text(METHOD)
    os.utime(tmp_path, ns=(1, 1))  # the clock of a file system may stand still between two moments
    assert "late" in registry.names("questbench.methods")


def test_unknown_names_point_to_a_list_that_has_them() -> None:
    from questbench import registry
    from questbench.cli.ls import KINDS

    assert set(registry.LISTED.values()) == set(KINDS), "runs have paths, which no name is looked up for"
    for kind, plural in registry.LISTED.items():
        assert f"questbench ls {plural}" in (registry.unknown(kind, "x", ["quest"]).hint or "")
    hint = registry.unknown("loop", "grph", ["auto", "graph"]).hint
    assert hint == "Did you mean 'graph'?", "no list has loops"
    assert registry.unknown("loop", "x", ["auto", "graph"]).hint == "Use one of them."


# ---- broken ones ----------------------------------------------------------------------------------------------------

BROKEN = {
    "missing_module": (None, "No module named 'not_there_at_all'"),
    "raises": ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
    "leaves": ("raise SystemExit(7)", "it tries to end the process (exit 7)"),
    "crashes": ("import os\nos._exit(9)", "it ends the process when it is imported"),
    "lacks_parts": ("x = 1", "must define"),
    "no_python": ("def :", "SyntaxError"),
}
"""Source of a plug-in's module, and what must be said of it."""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another package that registers every broken plug-in in every group, and one named as one of ours."""
    folder = tmp_path / "site"
    info = folder / "theirs-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    points = ""
    for group, own in (("methods", "quest"), ("tasks", "passkey"), ("kernels", "reference"), ("plots", "latency")):
        points += f"[questbench.{group}]\n{own} = theirs_own\n"
        points += "".join(
            f"{name} = {'not_there_at_all' if text is None else name}\n" for name, (text, _) in BROKEN.items()
        )
    (info / "entry_points.txt").write_text(points)
    (folder / "theirs_own.py").write_text("raise RuntimeError('never imported')\n")
    for name, (text, _) in BROKEN.items():
        if text is not None:
            (folder / f"{name}.py").write_text(f'"""A plug-in."""\n{text}\n')
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}")
    for name in BROKEN:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "crashes"])
def test_a_broken_plugin_is_an_error_with_its_reason(name: str, theirs: Path) -> None:
    from questbench.methods._make import method_class

    with pytest.raises(registry.PluginError) as error:
        method_class(name)
    assert f"'{name}'" in error.value.message and BROKEN[name][1] in error.value.message
    assert method_class("quest").__module__ == "questbench.methods.quest"


def test_a_builtin_name_is_refused(theirs: Path) -> None:
    from questbench.tasks._make import make_task

    assert registry.load_module("questbench.methods", "quest", kind="method").__name__ == "questbench.methods.quest"
    assert make_task("passkey").name == "passkey"
    assert registry.refused("questbench.methods") == {
        "quest": "theirs_own is not used: questbench itself has a 'quest'"
    }


def test_broken_plugins_are_named_by_ls_and_doctor(theirs: Path, questbench: Callable[..., Any]) -> None:
    listed = questbench("ls", "methods", "--json")
    assert listed.code == 0, listed.err
    rows = [json.loads(line) for line in listed.out.splitlines()]
    for name, (_, reason) in BROKEN.items():
        assert reason in next(row["summary"] for row in rows if row["name"] == name), name
    assert [row["summary"] for row in rows if row["name"] == "quest" and "theirs_own" in row["summary"]]
    assert {"dense", "quest", "h2o"} <= {row["name"] for row in rows}
    checked = questbench("doctor", "--json")
    assert checked.code == 0, checked.err
    found = {row["what"]: row for row in map(json.loads, checked.out.splitlines())}
    for kind in ("method", "task", "backend", "plot"):
        for name, (_, reason) in BROKEN.items():
            row = found[f"{kind} {name}"]
            assert row["state"] == "broken" and reason in row["found"], (kind, name, row)
    assert "questbench itself has" in found["method quest"]["found"]
    assert found["backend reference"]["state"] in ("ok", "broken")


def test_broken_plots_cost_a_report_nothing_else(theirs: Path, tmp_path: Path, questbench: Callable[..., Any]) -> None:
    from questbench.records import store
    from questbench.records.schema import ResultRecord

    (theirs / "crashes.py").write_text("raise SystemExit(1)\n")  # nothing survives os._exit in the same process
    with store.create_run(tmp_path, "kernel", ["questbench"], {}, {"machine": "one"}) as writer:
        for length in (4096, 8192):
            head = ("", "kernel", "ok", "dense", {}, "cpu", {"seq_len": length, "stage": "total"})
            writer.write([ResultRecord(*head, "latency", "s", 1e-3)])
        writer.finish()
    ended = questbench("report", "--out", tmp_path)
    assert ended.code == 0, ended.err
    for name in BROKEN:
        assert f"Plot {name} was skipped" in ended.err
    assert (tmp_path / "report" / "report.html").is_file()


def test_broken_methods_do_not_end_a_refusal_of_others(theirs: Path, questbench: Callable[..., Any]) -> None:
    (theirs / "crashes.py").write_text("raise SystemExit(1)\n")
    ended = questbench("kernel", "--method", "oracle")
    assert ended.code == 2, ended.err
    assert "yardstick" in ended.err and "quest" in ended.err
    ended = questbench("kernel", "--method", "raises")
    assert ended.code == 3 and "no licence" in ended.err and "bug" not in ended.err
