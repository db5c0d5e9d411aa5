"""Who may import whom (docs/design.md), read from the source; and other rules that a reader could not see at once."""

from __future__ import annotations

import ast
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from questbench import registry

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "questbench").rglob("*.py"), *(ROOT / "tasks").glob("*.py")])
HEAVY = {"torch", "transformers"}

LEAVES = {
    *("errors", "units", "seeding", "registry", "_paths", "_memory", "_noise", "_compiling", "_digest", "_coerce"),
    "flags",
}
ALLOWED: dict[str, set[str]] = {
    **{leaf: set() for leaf in LEAVES},
    "__init__": {"models", "methods"},
    "__main__": {"cli"},
    "kernels": set(),
    # The cache is told what to keep in the methods' words; it knows no method.
    "cache": {"kernels", "methods._base"},
    "methods": {"cache", "kernels"},
    "attention": {"methods", "cache", "kernels"},
    # How much memory is free, it is told by the same measure as all others.
    "models": {"attention", "methods", "cache", "kernels", "measure.memory"},
    "baselines": {"models", "methods", "cache", "kernels", "measure"},
    "tasks": set(),
    "measure": {"records"},
    "records": set(),
    "report": {"records"},
    "experiments": {
        "baselines",
        "models",
        "attention",
        "methods",
        "cache",
        "kernels",
        "tasks",
        "measure",
        "records",
    },
    "cli": {"experiments", "models", "kernels", "records", "report"},
}
"""Part -> parts it may import, besides itself and the leaves."""

LIGHT = {*LEAVES - {"_memory", "_noise"}, "__init__", "__main__", "cli", "report", "records", "tasks"}
"""Parts that never import torch or transformers, not even inside a function."""

BASELINE = "dense"
"""The one method that generic code may name: everything is measured against it."""


def part(path: Path) -> str:
    if path.parent == ROOT / "tasks":
        return "tasks"
    return path.relative_to(ROOT / "questbench").parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that a file imports, wherever in it."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(filter(None, [base, node.module]))
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of files that import each other, directly or round a circle."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_files: list[str] = []
    found: list[list[str]] = []

    def visit(file: str) -> None:  # Tarjan's strongly connected components
        number[file] = lowest[file] = len(number)
        open_files.append(file)
        for other in graph[file]:
            if other not in number:
                visit(other)
            if other in open_files:
                lowest[file] = min(lowest[file], lowest[other])
        if lowest[file] == number[file]:
            at = open_files.index(file)
            found.append(sorted(open_files[at:]))
            del open_files[at:]

    for file in graph:
        if file not in number:
            visit(file)
    return [group for group in found if len(group) > 1 or group[0] in graph[group[0]]]


def test_circles_are_found() -> None:
    assert circles({"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": [], "e": ["e", "a"]}) == [["a", "b", "c"], ["e"]]


def target(name: str, files: Container[str]) -> str:
    """The file that an imported name comes from; empty for one of another package."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name


def test_no_two_files_import_each_other() -> None:
    """Directly or round a circle, from inside a function or for type checking alone."""
    files = {}
    for path in SOURCES:
        if part(path) != "tasks":
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            files[module] = path
    graph = {
        module: sorted({target(name, files) for _, name in imports(path)} - {""}) for module, path in files.items()
    }
    found = [
        "; ".join(f"{one} imports {other}" for one in group for other in graph[one] if other in group)
        for group in circles(graph)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_dependencies_point_one_way(path: Path) -> None:
    allowed = ALLOWED[part(path)] | LEAVES | {part(path)}
    for line, name in imports(path):
        if not name.startswith("questbench.") or name == "questbench.__version__":
            continue
        target = name.removeprefix("questbench.") + "."
        fine = any(target.startswith(other + ".") for other in allowed)
        assert fine, f"{names(path)}:{line} imports {name}; {part(path)} may use {sorted(allowed)}"


@pytest.mark.parametrize("path", [p for p in SOURCES if part(p) in LIGHT], ids=names)
def test_light_parts_never_import_torch(path: Path) -> None:
    for line, name in imports(path):
        assert name.partition(".")[0] not in HEAVY, f"{names(path)}:{line} imports {name}"


@pytest.mark.parametrize("path", [p for p in SOURCES if part(p) == "experiments"], ids=names)
def test_experiments_do_not_store(path: Path) -> None:
    for line, name in imports(path):
        assert not name.startswith(("questbench.records.store", "questbench.records.writer")), f"{names(path)}:{line}"


PLUGINS = {
    folder: [path for path in SOURCES if path.parent == ROOT / "questbench" / folder and not path.name.startswith("_")]
    for folder in ("kernels", "baselines")
}


@pytest.mark.parametrize("path", [path for paths in PLUGINS.values() for path in paths], ids=names)
def test_backends_and_baselines_do_not_import_their_neighbours(path: Path) -> None:
    folder = path.parent.name
    others = {f"questbench.{folder}.{other.stem}" for other in PLUGINS[folder] if other != path}
    for line, name in imports(path):
        assert not any(name == other or name.startswith(other + ".") for other in others), f"{names(path)}:{line}"


def plugins() -> set[str]:
    """Names that only their own file may compare with. ``cpu`` and ``cuda`` are devices too, ``torch`` a package."""
    packages = ("methods", "tasks", "kernels", "baselines", "report.plots")
    found = {name for package in packages for name in registry.names(f"questbench.{package}")}
    return found - {BASELINE, "cpu", "cuda", "torch"}


def own_folder(path: Path) -> bool:
    return path.stem in plugins() and path.parent.name in ("methods", "tasks", "kernels", "baselines", "plots")


@pytest.mark.parametrize("path", [p for p in SOURCES if not own_folder(p)], ids=names)
def test_generic_code_compares_with_no_plugin_name(path: Path) -> None:
    known = plugins()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            texts = [leaf.value for side in sides for leaf in ast.walk(side) if isinstance(leaf, ast.Constant)]
            assert not known & {text for text in texts if isinstance(text, str)}, f"{names(path)}:{node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


def test_source_folders_are_no_packages() -> None:
    # `kernels` is the name of another distribution's module, and task files become questbench.tasks.* in the wheel.
    for folder in (ROOT / "tasks", ROOT / "kernels"):
        assert not list(folder.rglob("__init__.py"))
    assert not list((ROOT / "tasks").glob("_*.py"))
