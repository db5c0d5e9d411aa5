"""Files of a run that are not as questbench writes them: refused by name and place, never changed, never waited for."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from records_helpers import CONFIG, ENVIRONMENT, cell, record
from wrong_files import strange_files, whole_run, wrong_files

from questbench.errors import PrerequisiteError
from questbench.records import fields, store, wants
from questbench.records.journal import Commit
from questbench.records.schema import ResultRecord, RunManifest
from questbench.records.writer import RunWriter


def resume(path: Path) -> RunWriter:
    return store.resume(path, "kernel", ["questbench"], CONFIG, {**ENVIRONMENT, "git": {"commit": "a"}})


def refusal_of(act: Callable[[], object]) -> PrerequisiteError | None:
    try:
        act()
    except PrerequisiteError as error:
        return error
    return None


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_every_field_has_its_want() -> None:
    for kind, table in ((ResultRecord, fields.RECORD), (RunManifest, fields.MANIFEST), (Commit, fields.COMMIT)):
        assert {field.name for field in dataclasses.fields(kind)} <= set(table)


def test_wrong_files_are_refused_with_file_line_and_field(tmp_path: Path) -> None:
    """Several hundred files, each of them wrong in one place; the folder is as it was after every one."""
    run = whole_run(tmp_path / "results")
    good, seen = content(run), 0
    for wrong in wrong_files(run):
        (run / wrong.file).write_bytes(wrong.content)
        before = content(run)
        refused = refusal_of(lambda: (store.load_manifest(run), store.load([run]), store.load_samples(run)))
        assert refused, f"{wrong.name} was read"
        message = refused.message
        assert f"{wrong.file}, line {wrong.line}: " in message, (wrong.name, message)
        assert f"'{wrong.field}'" in message or not wrong.field, (wrong.name, message)
        assert refused.hint and len(message) < 600
        assert refusal_of(lambda: resume(run).close()), f"{wrong.name} was resumed"
        assert content(run) == before, wrong.name
        (run / wrong.file).write_bytes(good[wrong.file])
        seen += 1
    assert seen > 200
    resume(run).close()


def test_a_reordered_journal_loses_nothing(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    lines = (run / "cells.jsonl").read_text().splitlines()
    (run / "cells.jsonl").write_text(
        "\n".join([*reversed(lines), '{"records_end":0,"samples_end":0,"done":[],"failed":[]}', ""])
    )
    before = content(run)
    with pytest.raises(PrerequisiteError, match=r"cells\.jsonl, line 2: field 'records_end' is \d+, less than"):
        resume(run)
    assert content(run) == before


@pytest.mark.parametrize("gone", ["records.jsonl", "samples.jsonl", "cells.jsonl"])
def test_a_missing_file_loses_nothing(gone: str, tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    (run / gone).unlink()
    before = content(run)
    with pytest.raises(PrerequisiteError, match=gone):
        resume(run)
    assert content(run) == before | {".lock": b""}


def test_links_are_not_written_through_and_pipes_not_waited_for(tmp_path: Path) -> None:
    run, aside = whole_run(tmp_path / "results"), tmp_path / "aside"
    aside.mkdir()
    for file, kind in strange_files(run, aside):
        before = content(aside), content(run)
        refused = refusal_of(lambda: resume(run).close())
        # A manifest is replaced as a whole, so that what is behind a link is safe.
        assert refused or file == "run.json", f"a {kind} as {file} was taken"
        assert refused is None or file in refused.message, (file, kind, refused)
        assert content(aside) == before[0], f"{file} was written through a {kind}"
        if kind in ("pipe", "folder") and file not in (".lock", "samples.jsonl"):
            with pytest.raises(PrerequisiteError, match=file):
                _ = store.load_manifest(run), store.load([run])


def test_a_manifest_that_is_a_link_is_replaced_not_written_through(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "results")
    behind = tmp_path / "behind.json"
    shutil.move(run / "run.json", behind)
    (run / "run.json").symlink_to(behind)
    before = behind.read_bytes()
    with resume(run) as writer:
        writer.finish()
    assert behind.read_bytes() == before
    assert not (run / "run.json").is_symlink()


def test_what_a_killed_process_left_of_a_manifest_is_removed(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    (run / ".run.json.12345").write_text("{")
    (run / ".run.json.backup").write_text("mine")
    resume(run).close()
    assert not (run / ".run.json.12345").exists()
    assert (run / ".run.json.backup").exists()


def test_bytes_of_a_file_name_survive(tmp_path: Path) -> None:
    name = b"model-\xff".decode("utf-8", "surrogateescape")
    with store.create_run(tmp_path, "kernel", ["questbench", name], {"model": name}, ENVIRONMENT) as writer:
        writer.write(cell(0), samples=[{"cell": name}])
    (writer.path / "run.json").read_text(encoding="utf-8")
    assert store.load_manifest(writer.path).config == {"model": name}
    assert store.load_samples(writer.path) == [{"cell": name}]


def test_bytes_of_a_file_name_can_be_shown(tmp_path: Path) -> None:
    name = b"model-\xff".decode("utf-8", "surrogateescape")
    with store.create_run(tmp_path, "kernel", [], CONFIG, ENVIRONMENT) as writer:
        writer.write([record(params={"model": name, "task": "é 😀"})])
    (found,) = store.load([writer.path])
    assert (found.params["model"], found.params["task"]) == ("model-\\udcff", "é 😀")


def test_numbers_are_finite() -> None:
    for text in ('{"a":NaN}', '{"a":-Infinity}', '{"a":1e999}', '{"a":[-1E+400]}'):
        with pytest.raises(ValueError, match=r"no number of JSON|too large"):
            wants.parse(text)
    assert wants.parse('{"a":1e300,"b":1e-999}') == {"a": 1e300, "b": 0.0}
