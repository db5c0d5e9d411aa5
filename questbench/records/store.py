"""Run folders: records are appended cell by cell, and a kill at any moment loses at most the cell in flight.

A run folder holds four files::

    run.json       the manifest; replaced as a whole (temporary file, then rename)
    records.jsonl  one ResultRecord per line, exactly what ``--json`` prints
    samples.jsonl  one line per sample (accuracy)
    cells.jsonl    the journal: one line per whole cell, with the lengths that the two files above had then

Writing is :class:`RunWriter`; this file makes, resumes, finds and reads run folders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from questbench.errors import PrerequisiteError, UsageError
from questbench.records import environment as probes
from questbench.records import fields, files, journal, wants
from questbench.records.inputs import require_same_inputs
from questbench.records.schema import Kind, ResultRecord, RunManifest
from questbench.records.writer import MANIFEST, now, unwritable, write_manifest
from questbench.records.writer import RunWriter as RunWriter

NOT_COMPARED = frozenset({"out", "resume", "json", "quiet"})
"""Keys of a configuration that say where results go, not what they are."""


def create_run(
    results: Path,
    kind: Kind,
    argv: Sequence[str],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
) -> RunWriter:
    """Make a new run folder ``results/<UTC time>-<kind>-<machine>-<id>`` and its manifest.

    Args:
        inputs: what the run reads besides its configuration, by content.

    Raises:
        PrerequisiteError: the folder cannot be made.
    """
    start = datetime.datetime.now(datetime.UTC)
    stem = f"{start:%Y%m%dT%H%M%SZ}-{kind}-{probes.slug(dict(environment))}"
    try:
        results.mkdir(parents=True, exist_ok=True)
        while True:
            path = results / f"{stem}-{secrets.token_hex(2)}"
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                break
        held = journal.lock(path)
    except OSError as error:
        raise unwritable(results, error) from None
    manifest = RunManifest(
        run=path.name,
        kind=kind,
        argv=probes.scrub(list(argv)),
        config=_plain(config),
        environment=dict(environment),
        start=start.isoformat(),
        inputs=dict(inputs or {}),
    )
    write_manifest(path, manifest)
    return RunWriter(path, manifest, held)


def resume(
    path: Path,
    kind: Kind,
    argv: Sequence[str],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
    free: Collection[str] = (),
    check: Callable[[set[str]], object] | None = None,
) -> RunWriter:
    """Open a run folder again: cells in ``finished`` need not run, a cell that was in flight is removed.

    Args:
        free: keys of the configuration that may have another value than before; the manifest takes the new one.
        check: told the keys of finished cells before anything is written; raises UsageError where this cannot go on.

    Raises:
        PrerequisiteError: there is no run, another process writes it, or its files do not fit together.
        UsageError: the kind, the configuration, the machine or what is read (model, data, chat template) is not the
            one the run was started with.
    """
    manifest = load_manifest(path)
    settings = _plain(config)
    _require_same(path, manifest, kind, settings, dict(environment), free)
    if inputs is not None:
        require_same_inputs(path, manifest.inputs, dict(inputs))
    try:
        held = journal.lock(path)
    except OSError as error:
        raise unwritable(path, error) from None
    taken: IO[str] | RunWriter = held
    try:
        # What cannot be read is refused before anything is written.
        _ = load([path]), load_samples(path)
        taken = writer = RunWriter(path, manifest, held, journal.recover(path))
        if check is not None:
            check(writer.finished)
        facts = {name: environment.get(name) for name in ("git", "packages", "load", "kernels")}
        again = {"time": now(), "argv": probes.scrub(list(argv)), **facts}
        manifest.environment.setdefault("resumed", []).append(again)
        manifest.config |= {key: settings[key] for key in free}
        manifest.end = manifest.exit_code = None
        write_manifest(path, manifest)
    except OSError as error:
        taken.close()
        raise unwritable(path, error) from None
    except BaseException:
        taken.close()
        raise
    return writer


def load(paths: Iterable[Path]) -> list[ResultRecord]:
    """Records of run folders, oldest run first; a torn last line and a cell in flight are left out.

    Args:
        paths: run folders, folders of run folders, or ``records.jsonl`` files.

    Raises:
        PrerequisiteError: a path is no run, a line cannot be read, or its schema is newer than this version.
    """
    records = []
    for folder in expand(paths):
        for number, line in journal.read_lines(folder, journal.RECORDS):
            try:
                data = wants.parse(line)
                if wants.HALVES.search(line):
                    data = wants.visible(data)
                records.append(ResultRecord.from_dict(data))
            except ValueError as error:
                hint = "Update questbench if the schema is newer; otherwise remove that line or leave this run out."
                raise PrerequisiteError(f"{folder / journal.RECORDS}, line {number}: {error}.", hint) from None
    return records


def load_samples(path: Path) -> list[dict[str, Any]]:
    """Rows of a run's ``samples.jsonl``, without those of a cell in flight.

    Raises:
        PrerequisiteError: a line cannot be read.
    """
    rows = []
    for number, line in journal.read_lines(path, journal.SAMPLES):
        try:
            row = wants.parse(line)
            fields.check_sample(row)
            rows.append(row)
        except ValueError as error:
            message = f"{path / journal.SAMPLES}, line {number}: {error}."
            raise PrerequisiteError(message, "Remove that line or leave this run out.") from None
    return rows


def load_manifest(path: Path) -> RunManifest:
    """The manifest of a run folder.

    Raises:
        PrerequisiteError: it is not there or cannot be read.
    """
    file = path / MANIFEST
    if not files.is_folder(path):
        raise PrerequisiteError(f"There is no run folder '{path}'.", "Name one: results/<time>-<kind>-<machine>-<id>")
    text = files.read(file)
    if text is None:
        raise PrerequisiteError(f"'{path}' is not a run: it has no {MANIFEST}.", "Start a new run.")
    try:
        return RunManifest.from_dict(wants.parse(text))
    except ValueError as error:
        message = f"{file}, line {_line(text, error)}: {error}."
        raise PrerequisiteError(message, "Leave this run out, or start a new one.") from None


def _line(text: bytes, error: ValueError) -> int:
    """Line of a manifest that an error is about; the first where that is not known."""
    if isinstance(error, wants.SyntaxFault):
        return error.line
    if isinstance(error, wants.FieldError):
        name = re.escape(json.dumps(error.field.rpartition(".")[2]).encode())
        if found := re.search(rb"^\s*" + name + rb"\s*:", text, re.MULTILINE):
            return text.count(b"\n", 0, found.start() + len(found.group()) - len(found.group().lstrip())) + 1
    return 1


def locate(path: Path, results: Path) -> Path:
    """The folder that a user means: a path as it stands, or the name of a run in ``results``."""
    below = results / path
    return below if not files.present(path) and _is_run(below) else path


def runs(results: Path) -> list[Path]:
    """Run folders directly below ``results``, oldest first; empty if there are none."""
    if not files.is_folder(results):
        return []
    return sorted((path for path in results.iterdir() if _is_run(path)), key=_age)


def expand(paths: Iterable[Path]) -> list[Path]:
    """The run folders that ``paths`` mean, oldest first, each once.

    Raises:
        PrerequisiteError: a path is neither a run nor a folder of runs.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.name == journal.RECORDS and files.present(path):
            found[path.parent] = None
        elif _is_run(path):
            found[path] = None
        elif below := runs(path):
            found.update(dict.fromkeys(below))
        else:
            what = "holds no run" if files.is_folder(path) else "does not exist"
            hint = "Name a run folder, or make one with: questbench kernel"
            raise PrerequisiteError(f"'{path}' {what}.", hint)
    return sorted(found, key=_age)


def newest_per_cell(records: Iterable[ResultRecord]) -> list[ResultRecord]:
    """One record per (cell, metric): the last one, so pass them oldest first, as :func:`load` returns them.

    A failed or skipped record gives way to any later success of its cell, whatever metric it was recorded under. Where
    a run went on with another number of samples, its last number counts.
    """
    latest: dict[tuple[str, str], tuple[int, ResultRecord]] = {}
    success: dict[str, int] = {}
    series = [(_whatever_samples(record), record) for record in records]
    last = {whose: record.params.get("samples") for whose, record in series}
    for number, (whose, record) in enumerate(series):
        if record.params.get("samples") != last[whose]:
            continue
        cell = record.cell()
        latest[cell, record.metric] = number, record
        if record.status == "ok":
            success[cell] = number
    kept = [
        (number, record)
        for (cell, _), (number, record) in latest.items()
        if record.status == "ok" or number > success.get(cell, -1)
    ]
    return [record for _, record in sorted(kept, key=lambda pair: pair[0])]


def _whatever_samples(record: ResultRecord) -> tuple[str, str]:
    """The run and the cell of a record, whatever its number of samples."""
    params = {key: value for key, value in record.params.items() if key != "samples"}
    return record.run, dataclasses.replace(record, params=params).cell()


def _is_run(path: Path) -> bool:
    return any(files.present(path / name) for name in (MANIFEST, journal.RECORDS))


def _age(path: Path) -> tuple[str, str]:
    # Folder names begin with the time in seconds; the manifest knows it better and survives a rename.
    with contextlib.suppress(PrerequisiteError):
        return load_manifest(path).start, path.name
    return "", path.name


def _require_same(
    path: Path,
    manifest: RunManifest,
    kind: Kind,
    config: dict[str, Any],
    environment: dict[str, Any],
    free: Collection[str],
) -> None:
    if manifest.kind != kind:
        message = f"'{path}' is a run of '{manifest.kind}', not of '{kind}'."
        raise UsageError(message, f"Use: questbench {manifest.kind}")
    keys = sorted((set(manifest.config) | set(config)) - NOT_COMPARED - set(free))
    differing = [key for key in keys if manifest.config.get(key) != config.get(key)]
    if differing:
        shown = "; ".join(f"{key}: {manifest.config.get(key)!r} then, {config.get(key)!r} now" for key in differing)
        hint = "Repeat the flags the run was started with (its run.json has them), or start a new run."
        raise UsageError(f"'{path}' was started with another configuration: {shown}.", hint)
    then, today = probes.machine(manifest.environment), probes.machine(environment)
    if then != today:
        message = f"'{path}' was started on another machine: {then}; this is {today}."
        raise UsageError(message, "Start a new run here; report reads both.")


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as JSON gives it back, so that a stored one compares equal; home folders become ``~``."""
    plain: dict[str, Any] = probes.scrub(json.loads(json.dumps(dict(config), default=str)))
    return plain
