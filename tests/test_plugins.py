"""One new file adds a method, a task, a backend or a plot, and nothing else is edited."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

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
    with pytest.raises(TypeError, match=r"two\.py"):
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


def test_unknown_names_point_to_a_list_that_has_them() -> None:
    from questbench import registry
    from questbench.cli.ls import KINDS

    assert set(registry.LISTED.values()) == set(KINDS)
    for kind, plural in registry.LISTED.items():
        assert f"questbench ls {plural}" in (registry.unknown(kind, "x", ["quest"]).hint or "")
    hint = registry.unknown("loop", "grph", ["auto", "graph"]).hint
    assert hint == "Did you mean 'graph'?", "no list has loops"
    assert registry.unknown("loop", "x", ["auto", "graph"]).hint == "Use one of them."
