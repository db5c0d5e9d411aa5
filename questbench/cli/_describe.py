"""What a plug-in says about itself, read from its source: nothing is imported, so a list costs no torch."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path

from questbench import registry


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
    """Every plug-in of a package, sorted by name; one that cannot be read says so in its summary."""
    return [_describe(package, name) for name in registry.names(package)]


def _describe(package: str, name: str) -> Description:
    try:
        tree = ast.parse(_source(package, name))
    except (OSError, SyntaxError, ImportError) as error:
        return Description(name, f"cannot be read: {error}")
    fields: dict[str, str] = {}
    yardstick = False
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation) and item.value:
                    fields[ast.unparse(item.target)] = _literal(item.value)
            yardstick |= any("Yardstick" in ast.unparse(base) for base in node.bases)
    doc = ast.get_docstring(tree) or ""
    link = re.search(r"https?://[^\s)>,]+", doc)
    return Description(name, _first_sentence(doc), fields, yardstick, link.group(0).rstrip(".") if link else "")


def _source(package: str, name: str) -> str:
    group = "questbench." + package.rsplit(".", 1)[-1]
    added = {point.name: point.module for point in importlib.metadata.entry_points(group=group)}
    module = added.get(name, f"{package}.{name}")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"no file for {module}")
    return Path(spec.origin).read_text(encoding="utf-8")


def _literal(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def _first_sentence(doc: str) -> str:
    """The first sentence of the first line, without markup, and without the link that may follow a name in brackets."""
    line = re.sub(r" \(\S*https?://[^)]*\)", "", doc.partition("\n")[0]).replace("``", "")
    return re.split(r" \(|\.\s+(?=[A-Z])", line)[0].rstrip(".,;: ")
