"""``report.md`` and ``report.html``: card, comparison, tables, figures and the list of runs, in that order."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from questbench import __version__
from questbench.records.schema import RunManifest
from questbench.report import escape
from questbench.report._runs import commit, load
from questbench.report.frame import run_marks
from questbench.report.plots._base import Drawn
from questbench.report.render import NONE, Cell, Table, to_html, to_markdown
from questbench.report.style import DPI

_CSS = """
body { font: 16px/1.5 Georgia, "Times New Roman", serif; color: #1a1a1a; max-width: 72rem }
body { margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .5rem } h2 { border-bottom: 1px solid #ccc; padding-bottom: .2rem }
.table { overflow-x: auto } table { border-collapse: collapse; margin: .75rem 0; font-size: .875rem }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4 }
th { border-bottom: 1.5px solid #444; vertical-align: bottom } .text { text-align: left; white-space: normal }
.setup, .note { font-size: .85rem; color: #444; margin: .15rem 0 }
figure { margin: 1.5rem 0 } figure img { max-width: 100%; height: auto } figcaption { font-size: .875rem; color: #333 }
@page { size: A4 landscape; margin: 12mm }
@media print {
  body { max-width: none; margin: 0; padding: 0; font-size: 10pt }
  .table { overflow: visible } table { font-size: 7pt } th, td { padding: 1px 3px; white-space: normal }
  tr, figure, .setup, .note { break-inside: avoid } thead { display: table-header-group }
  h1, h2, h3, .setup { break-after: avoid } figure img { max-height: 160mm; width: auto }
}
"""
ENLARGED = 1.5
"""Figures are made for paper; a screen is read from farther away."""


@dataclasses.dataclass
class Document:
    """What a report says, before it is written."""

    manifests: list[RunManifest]
    tables: list[Table]
    drawn: list[Drawn]
    comparison: list[Table]
    notes: list[str]


def write(document: Document, out: Path, formats: Iterable[str]) -> list[Path]:
    """Write the pages among the given formats (``md``, ``html``); the paths written."""
    writers = {"md": ("report.md", _markdown), "html": ("report.html", _page)}
    paths = []
    for file, writer in (writers[name] for name in formats if name in writers):
        (out / file).write_text(writer(document, out), encoding="utf-8")
        paths.append(out / file)
    return paths


def card(manifests: Sequence[RunManifest]) -> list[tuple[str, str]]:
    """Machine, system, versions and commits of the runs."""
    environments = [manifest.environment for manifest in manifests]
    return [
        (name, "; ".join(dict.fromkeys(value for environment in environments if (value := text(environment)))))
        for name, text in (
            ("machine", lambda environment: str(environment.get("machine") or "")),
            ("system", lambda environment: str(environment.get("os") or "")),
            ("python", lambda environment: str(environment.get("python") or "")),
            ("packages", _packages),
            ("compilers", lambda environment: _pairs(environment.get("compilers"))),
        )
    ] + [("commits", ", ".join(dict.fromkeys(map(commit, manifests))))]


def run_table(manifests: Sequence[RunManifest]) -> Table:
    """The list of runs."""
    marks = run_marks(manifest.run for manifest in manifests)
    columns = ["mark", "run", "start (UTC)", "kind", "commit", "load", "exit", "command"]
    table = Table("Runs", columns, text_columns=frozenset(columns) - {"exit"})
    for manifest in manifests:
        ended = (
            "unfinished" if manifest.end is None else NONE if manifest.exit_code is None else str(manifest.exit_code)
        )
        command = " ".join(Path(word).name if number == 0 else word for number, word in enumerate(manifest.argv))
        start = manifest.start[:19].replace("T", " ")
        values = [marks.get(manifest.run, NONE), manifest.run, start, manifest.kind, commit(manifest)]
        values += [load(manifest) or NONE, ended, command or NONE]
        table.rows.append([Cell(value) for value in values])
    return table.without_empty_columns()


def _packages(environment: dict[str, Any]) -> str:
    return _pairs(environment.get("packages"))


def _pairs(versions: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else ""


def _markdown(document: Document, out: Path) -> str:
    parts = ["# questbench report\n"]
    known = card(document.manifests) if document.manifests else []
    parts += [f"- **{name}**: {escape.markdown(value)}" for name, value in known if value]
    parts += ["", *(f"- {escape.markdown(note)}" for note in document.notes)]
    if document.comparison:
        parts += ["\n## Comparison\n", *map(to_markdown, document.comparison)]
    if document.tables:
        parts += ["\n## Tables\n", *map(to_markdown, document.tables)]
    if document.drawn:
        parts.append("\n## Figures\n")
    for figure in document.drawn:
        files = ", ".join(f"[{path.suffix[1:]}]({_below(path, out)})" for path in figure.paths)
        name, caption = escape.markdown(figure.name), escape.markdown(figure.caption)
        parts.append(f"![{name}]({_below(figure.png, out)})\n\n*{caption}* ({files})\n")
    if document.manifests:
        parts += ["\n## Runs\n", to_markdown(run_table(document.manifests))]
    return "\n".join(parts).rstrip() + f"\n\nMade by questbench {__version__} from stored records.\n"


def _page(document: Document, out: Path) -> str:
    parts = ["<h1>questbench report</h1>", "<ul>"]
    known = card(document.manifests) if document.manifests else []
    parts += [f"<li><strong>{name}</strong>: {escape.html(value)}</li>" for name, value in known if value]
    parts += [*(f"<li>{escape.html(note)}</li>" for note in document.notes), "</ul>"]
    if document.comparison:
        parts += ["<h2>Comparison</h2>", *map(to_html, document.comparison)]
    if document.tables:
        parts += ["<h2>Tables</h2>", *map(to_html, document.tables)]
    if document.drawn:
        parts.append("<h2>Figures</h2>")
    for figure in document.drawn:
        image = base64.b64encode(figure.png.read_bytes()).decode()
        caption = escape.html(figure.caption)
        width = f"{inches(figure.png) * ENLARGED:.2f}in"
        source = f'<img alt="{escape.html(figure.name)}" style="width: {width}" src="data:image/png;base64,{image}">'
        files = ", ".join(f'<a href="{_below(path, out)}">{path.suffix[1:]}</a>' for path in figure.paths)
        parts.append(f"<figure>{source}<figcaption>{caption} ({files})</figcaption></figure>")
    if document.manifests:
        parts.append(to_html(run_table(document.manifests), level=2))
    body = "\n".join(parts)
    screen = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{screen}<title>questbench report</title><style>{_CSS}</style>'
    foot = f"<p class='note'>Made by questbench {__version__} from stored records.</p>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n{foot}\n</body></html>\n'


def inches(png: Path) -> float:
    """Width of a figure on paper: pixels of its PNG header over the resolution that figures are saved with."""
    return int.from_bytes(png.read_bytes()[16:20], "big") / DPI


def _below(path: Path, out: Path) -> str:
    return path.relative_to(out).as_posix()
