"""What a plug-in says about itself, read from its source: nothing is imported, so a list costs no torch."""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path

from questbench import registry

SHARED = ("_base", "_data")
"""Files of the classes that all plug-ins of a kind have in common."""
FLAGS = ("data", "online")
"""Fields of tasks that flags set."""


@dataclass(frozen=True)
class Description:
    """One plug-in of a folder."""

    name: str
    summary: str
    """First sentence of the module's docstring."""
    fields: dict[str, str] = field(default_factory=dict)
    """Dataclass fields and their defaults, as they stand in the source."""
    yardstick: bool = False
    """A reference point that nobody would deploy."""
    source: str = ""
    """Link to where it comes from: the first one of the docstring."""


def describe(package: str) -> list[Description]:
    """Every plug-in of a package, sorted by name; one that cannot be used says so in its summary.

    Files of questbench are read, not imported. Those of other packages are imported too, in another process: nothing
    else tells whether they work.
    """
    found = [_describe(package, name) for name in registry.names(package)]
    found += [Description(name, why) for name, why in registry.refused(package).items()]
    if added := registry.foreign(package):
        from questbench.cli._plugins import problems

        broken = {name: why for (_, name), why in problems([(package, name) for name in added]).items()}
        found = [Description(one.name, broken[one.name]) if one.name in broken else one for one in found]
    return sorted(found, key=lambda one: one.name)


def _describe(package: str, name: str) -> Description:
    try:
        tree = ast.parse(_source(package, name))
    except (OSError, SyntaxError, ImportError, ValueError, RecursionError) as error:
        return Description(name, f"cannot be read: {error}")
    fields: dict[str, str] = {}
    yardstick = False
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            fields |= _fields(tree, node)
            yardstick |= any("Yardstick" in ast.unparse(base) for base in node.bases)
    doc = ast.get_docstring(tree) or ""
    link = re.search(r"https?://[^\s)>,]+", doc)
    return Description(name, _first_sentence(doc), fields, yardstick, link.group(0).rstrip(".") if link else "")


def _fields(tree: ast.Module, node: ast.ClassDef) -> dict[str, str]:
    """The fields of a class: those that its bases in questbench have, and its own."""
    found: dict[str, str] = {}
    for base in reversed(node.bases):
        module, _, name = _imported(tree, ast.unparse(base)).rpartition(".")
        # What all tasks or methods have is no parameter of one of them, and a flag of its own sets it.
        if module.startswith("questbench.") and module.rpartition(".")[2] not in SHARED:
            other = ast.parse(_source(*module.rpartition(".")[::2]))
            for known in other.body:
                if isinstance(known, ast.ClassDef) and known.name == name:
                    found |= _fields(other, known)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation) and item.value:
            found[ast.unparse(item.target)] = _literal(item.value)
    return {name: value for name, value in found.items() if name not in FLAGS}


def _imported(tree: ast.Module, name: str) -> str:
    """The full name of what a file calls so: ``RulerNiah`` or ``base.LongBench``."""
    first, dot, rest = name.partition(".")
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if first == (alias.asname or alias.name):
                    return f"{node.module}.{alias.name}{dot}{rest}"
    return ""


def _source(package: str, name: str) -> str:
    module = registry.foreign(package).get(name, f"{package}.{name}")
    parent, _, last = module.rpartition(".")
    # Finding a module in a package imports the package: one of ours is harmless, another one may do anything.
    if parent and not module.startswith("questbench."):
        return _below(parent.split("."), last)
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"there is no module {module}")
    return Path(spec.origin).read_text(encoding="utf-8")


def _below(parents: list[str], last: str) -> str:
    """Source of a module in another package, found without importing that package."""
    top = importlib.util.find_spec(parents[0])
    for folder in (top.submodule_search_locations or []) if top else []:
        stem = Path(folder, *parents[1:], last)
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return path.read_text(encoding="utf-8")
    raise ImportError(f"there is no module {'.'.join([*parents, last])}")


def _literal(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def _first_sentence(doc: str) -> str:
    """The first sentence of the first line, without markup, and without the link that may follow a name in brackets."""
    line = re.sub(r" \(\S*https?://[^)]*\)", "", doc.partition("\n")[0]).replace("``", "")
    return re.split(r" \(|\.\s+(?=[A-Z])", line)[0].rstrip(".,;: ")
