"""Run folders with one thing wrong, of every kind: what a reader must refuse, and where it must say that it is."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records_helpers import CONFIG, ENVIRONMENT, cell

from questbench.records import fields, store

OTHERS: tuple[Any, ...] = (None, True, -1, 2**70, 1.5, "text", [], ["a", 1], {}, {"a": [1]})
"""Values of every type; those that a field takes are left out."""
RAW = {
    "infinity": '{"a":Infinity}',
    "NaN": '{"a":NaN}',
    "1e999": '{"a":1e999}',
    "nesting": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "half an object": '{"a":',
    "a list": "[1]",
}
"""Lines that are no JSON object, or none that strict JSON knows."""


@dataclass(frozen=True)
class Wrong:
    """One wrong file."""

    name: str
    file: str
    line: int
    field: str
    """Empty where the line is no JSON object."""
    content: bytes


def whole_run(results: Path) -> Path:
    """A run with two finished cells and two samples."""
    with store.create_run(results, "kernel", ["questbench"], CONFIG, {**ENVIRONMENT, "git": {"commit": "a"}}) as writer:
        for index in range(2):
            writer.write(cell(index, size=1), key=f"unit {index}", samples=[{"cell": str(index), "score": 1.0}])
        writer.finish()
    return writer.path


def wrong_files(run: Path) -> Iterator[Wrong]:
    """Every kind of wrong content of every file of a whole run."""
    for file, tables in {
        "records.jsonl": {
            "": fields.RECORD,
            "params.": fields.PARAMS,
            "method_args.": fields.METHOD_ARGS,
            "stats.": fields.STATS,
        },
        "cells.jsonl": {"": fields.COMMIT},
        "samples.jsonl": {"": fields.SAMPLE},
        "run.json": {"": fields.MANIFEST, "environment.": fields.ENVIRONMENT, "environment.git.": fields.GIT},
    }.items():
        text = (run / file).read_text()
        lines = [text] if file == "run.json" else text.splitlines()
        for (prefix, table), number in itertools.product(tables.items(), range(len(lines))):
            for name, want in table.items():
                unfit = [value for value in OTHERS if not want.holds(value)]
                # Every field once on each line, with another value each time.
                value = unfit[(len(name) + number) % len(unfit)]
                data = _with(json.loads(lines[number]), prefix + name, value)
                yield _wrong(f"{prefix}{name}={value}", file, lines, number, prefix + name, data)
        if file != "samples.jsonl":
            yield _wrong("unknown field", file, lines, 0, "colour", {**json.loads(lines[0]), "colour": 1})
            first, data = next(iter(tables[""])), json.loads(lines[0])
            del data[first]
            yield _wrong("missing field", file, lines, 0, first, data)
        for name, content in RAW.items():
            changed = [*lines]
            changed[-1] = content
            end = "" if file == "run.json" else "\n"
            yield Wrong(f"{name} in {file}", file, len(changed), "", ("\n".join(changed) + end).encode())
        yield Wrong(f"no text in {file}", file, 1, "", b"\xff\xfe\n" + text.encode())
    journal = (run / "cells.jsonl").read_text().splitlines()
    swapped = "\n".join(reversed(journal)) + "\n"
    yield Wrong("reordered journal", "cells.jsonl", 2, "records_end", swapped.encode())


def _with(data: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    *path, last = name.split(".")
    inner = data
    for part in path:
        inner = inner[part]
    inner[last] = value
    return data


def _wrong(name: str, file: str, lines: list[str], number: int, field: str, data: dict[str, Any]) -> Wrong:
    if file == "run.json":
        content = json.dumps(data, indent=2) + "\n"
        key = json.dumps(field.rpartition(".")[2]) + ":"
        place = next((n for n, line in enumerate(content.splitlines(), 1) if line.strip().startswith(key)), 1)
        return Wrong(name, file, place, field, content.encode())
    changed = [*lines]
    changed[number] = json.dumps(data)
    return Wrong(name, file, number + 1, field, ("\n".join(changed) + "\n").encode())


def strange_files(run: Path, aside: Path) -> Iterator[tuple[str, str]]:
    """Put links, pipes and folders in the place of one file after the other; the file's name and what stands there."""
    for file in ("run.json", "records.jsonl", "samples.jsonl", "cells.jsonl", ".lock"):
        kept = aside / file
        (run / file).rename(kept)
        for kind in ("link", "hard link", "pipe", "folder", "broken link"):
            _make(run / file, kind, kept, aside)
            yield file, kind
            (run / file).rmdir() if kind == "folder" else (run / file).unlink()
        kept.rename(run / file)


def _make(path: Path, kind: str, kept: Path, aside: Path) -> None:
    if kind == "link":
        path.symlink_to(kept)
    elif kind == "hard link":
        path.hardlink_to(kept)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(aside / "nothing")
