"""Run folders: never overwritten, resumable, one writer, readable whatever happened to them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from records_helpers import CONFIG, ENVIRONMENT, cell, record

from questbench._paths import CHECKOUT
from questbench.errors import PrerequisiteError, UsageError
from questbench.records import store
from questbench.records.writer import RunWriter


def start(results: Path) -> RunWriter:
    return store.create_run(results, "kernel", ["questbench", "kernel"], CONFIG, ENVIRONMENT)


def resume(path: Path, **config: object) -> RunWriter:
    return store.resume(path, "kernel", ["questbench", "kernel"], {**CONFIG, **config}, ENVIRONMENT)


def test_round_trip(tmp_path: Path) -> None:
    with start(tmp_path) as writer:
        stored = writer.write([record(value=float("nan"), samples=[1.0, 2.0]), record(metric="bytes", value=3.0)])
        writer.samples([{"prompt": "a", "score": 1.0}])
        writer.write([record("dense")], prefills=4)
        writer.finish(exit_code=0)
    assert [item.run for item in stored] == [writer.name] * 2
    lines = (writer.path / "records.jsonl").read_text().splitlines()
    assert lines[:2] == [item.to_json() for item in stored], "stored lines are what --json prints"
    loaded = store.load([tmp_path])
    assert [item.to_json() for item in loaded] == lines
    assert loaded[0].value is None, "NaN becomes null"
    manifest = store.load_manifest(writer.path)
    assert (manifest.prefills, manifest.exit_code, manifest.config["seq_len"]) == (4, 0, [8192])
    assert manifest.end is not None
    assert store.load_samples(writer.path) == [{"prompt": "a", "score": 1.0}]


def test_run_folders_are_never_reused(tmp_path: Path) -> None:
    names = set()
    for _ in range(5):
        with start(tmp_path / "deep" / "results") as writer:
            names.add(writer.name)
    assert len(names) == 5
    assert all("-kernel-test-" in name for name in names)
    assert [path.name for path in store.runs(tmp_path / "deep" / "results")] != []


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PrerequisiteError) as error:
        start(tmp_path / "file" / "results")
    assert error.value.hint and "--out" in error.value.hint


def test_resume_skips_whole_cells_and_retries_failed_ones(tmp_path: Path) -> None:
    failed = record(status="failed", value=None, reason="out of memory", params={"index": 9})
    skipped = record(status="skipped", value=None, reason="budget above length", params={"index": 8})
    with start(tmp_path) as writer:
        writer.write(cell(0), key="zero")
        writer.write([failed], key="nine")
        writer.write([skipped], key="eight")
    with resume(writer.path) as again:
        assert again.finished == {"zero", "eight", cell(0)[0].cell(), skipped.cell()}
        again.write([record(params={"index": 9})], key="nine")
        assert {"nine", failed.cell()} <= again.finished
        again.finish()
    newest = store.newest_per_cell(store.load([writer.path]))
    assert [item.status for item in newest] == ["ok"] * 3 + ["skipped", "ok"]


def test_a_group_with_one_failure_fails_as_a_unit_only(tmp_path: Path) -> None:
    good, bad = record("dense"), record("quest", status="failed", value=None, reason="no memory")
    with start(tmp_path) as writer:
        writer.write([good, bad], key="both")
        assert writer.finished == {good.cell()}


@pytest.mark.parametrize("torn", ["records.jsonl", "samples.jsonl", "cells.jsonl"])
def test_torn_last_line(tmp_path: Path, torn: str) -> None:
    with start(tmp_path) as writer:
        writer.samples([{"row": 0}])
        writer.write(cell(0))
    before = {name: (writer.path / name).read_bytes() for name in ("records.jsonl", "samples.jsonl", "cells.jsonl")}
    with (writer.path / torn).open("a") as file:
        file.write('{"run":"x","ki')
    assert len(store.load([writer.path])) == 3
    assert store.load_samples(writer.path) == [{"row": 0}]
    with resume(writer.path) as again:
        assert again.finished == {cell(0)[0].cell()}
    assert {name: (writer.path / name).read_bytes() for name in before} == before


def test_cell_in_flight_is_ignored_and_removed(tmp_path: Path) -> None:
    with start(tmp_path) as writer:
        writer.write(cell(0))
        writer.samples([{"row": 1}])
    with (writer.path / "records.jsonl").open("a") as file:
        file.write(cell(1)[0].to_json() + "\n")  # one of three lines, whole, but the journal does not know it
    assert len(store.load([writer.path])) == 3
    with resume(writer.path) as again:
        again.write(cell(1))
    assert [item.value for item in store.load([writer.path])] == [0.0] * 3 + [1.0] * 3
    assert store.load_samples(writer.path) == []


def test_interrupted_write_leaves_no_trace_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(tmp_path) as writer:
        real = os.fsync
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            writer.write(cell(0))
        monkeypatch.setattr(os, "fsync", real)
        writer.write(cell(1))
    assert {item.value for item in store.load([writer.path])} == {1.0}


def test_full_disk_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(tmp_path) as writer:

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(PrerequisiteError, match="No space left"):
                writer.write(cell(0))
        writer.write(cell(0))
    assert len(store.load([writer.path])) == 3


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with start(tmp_path) as writer:
        with pytest.raises(PrerequisiteError, match="Another process"):
            resume(writer.path)
        writer.write(cell(0))
    resume(writer.path).close()


def test_resume_refuses_another_configuration(tmp_path: Path) -> None:
    with start(tmp_path) as writer:
        pass
    with pytest.raises(UsageError, match=r"budget: \[512\] then, \[1024\] now") as error:
        resume(writer.path, budget=[1024])
    assert "seq_len" not in error.value.message
    resume(writer.path, out="elsewhere").close()
    with pytest.raises(UsageError, match="'kernel', not of 'accuracy'"):
        store.resume(writer.path, "accuracy", [], CONFIG, ENVIRONMENT)
    with pytest.raises(UsageError, match="another machine"):
        store.resume(writer.path, "kernel", [], CONFIG, {"machine": "Other CPU"})


def test_a_setting_that_may_change_is_kept(tmp_path: Path) -> None:
    with start(tmp_path) as writer:
        pass
    settings = {**CONFIG, "budget": [1024]}
    store.resume(writer.path, "kernel", ["questbench"], settings, ENVIRONMENT, free={"budget"}).close()
    assert store.load_manifest(writer.path).config["budget"] == [1024]
    with pytest.raises(UsageError, match="seq_len"):
        store.resume(writer.path, "kernel", [], {**settings, "seq_len": [1]}, ENVIRONMENT, free={"budget"})


def test_what_cannot_go_on_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    with start(tmp_path) as writer:
        writer.write(cell(0))
    before, seen = (writer.path / "run.json").read_bytes(), []

    def refuse(finished: set[str]) -> None:
        seen.append(finished)
        raise UsageError("fewer than were shown")

    settings = {**CONFIG, "budget": [1024]}
    with pytest.raises(UsageError, match="fewer than were shown"):
        store.resume(writer.path, "kernel", [], settings, ENVIRONMENT, free={"budget"}, check=refuse)
    assert seen == [writer.finished] and writer.finished
    assert (writer.path / "run.json").read_bytes() == before
    resume(writer.path).close()  # and nobody holds it


def test_of_one_run_the_last_number_of_samples_counts() -> None:
    few, many = (record(value=value, params={"samples": count}) for value, count in ((1.0, 8), (2.0, 20)))
    other = record(value=3.0, params={"samples": 8, "task": "other"})
    elsewhere = dataclasses.replace(few, run="elsewhere")
    assert [item.value for item in store.newest_per_cell([few, other, elsewhere, many])] == [3.0, 1.0, 2.0]


def test_resume_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="no run folder"):
        resume(tmp_path / "nothing")
    with pytest.raises(PrerequisiteError, match=r"no run\.json"):
        resume(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 99}')
    with pytest.raises(PrerequisiteError, match="newer"):
        resume(tmp_path)


def test_resume_adds_prefills_and_notes_itself(tmp_path: Path) -> None:
    with start(tmp_path) as writer:
        writer.write([], key="sample 0", samples=[{"sample": "0"}], prefills=3)
        writer.finish(exit_code=130)
    with resume(writer.path) as again:
        assert store.load_manifest(again.path).end is None
        assert again.finished == {"sample 0"}
        again.write([], key="sample 1", samples=[{"sample": "1"}], prefills=2)
        again.finish()
    assert [row["sample"] for row in store.load_samples(writer.path)] == ["0", "1"]
    manifest = store.load_manifest(writer.path)
    assert manifest.prefills == 5
    assert len(manifest.environment["resumed"]) == 1


def test_corrupt_line_names_file_and_line(tmp_path: Path) -> None:
    with start(tmp_path) as writer:
        for index in range(3):
            writer.write(cell(index, size=1))
    file = writer.path / "records.jsonl"
    lines = file.read_text().splitlines()
    garbled = "#" * len(lines[1])
    file.write_text("\n".join([lines[0], garbled, lines[2]]) + "\n")
    with pytest.raises(PrerequisiteError, match=r"records\.jsonl, line 2") as error:
        store.load([writer.path])
    assert error.value.hint
    file.write_text("\n".join([lines[0], lines[2]]) + "\n")  # as the hint says
    assert [item.value for item in store.load([writer.path])] == [0.0, 2.0]
    with pytest.raises(PrerequisiteError, match="was changed"):
        resume(writer.path)


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    data = json.loads(record().to_json()) | {"schema": 99, "a_new_field": 1}
    (tmp_path / "records.jsonl").write_text(json.dumps(data) + "\n")
    with pytest.raises(PrerequisiteError, match=r"line 1: schema 99 is newer"):
        store.load([tmp_path])


def test_corrupt_journal_names_the_way_out(tmp_path: Path) -> None:
    with start(tmp_path) as writer:
        writer.write(cell(0))
        writer.write(cell(1))
    journal = writer.path / "cells.jsonl"
    journal.write_text("garbage\n" + journal.read_text())
    with pytest.raises(PrerequisiteError, match=r"cells\.jsonl, line 1") as error:
        store.load([writer.path])
    assert error.value.hint and "Remove cells.jsonl" in error.value.hint
    journal.unlink()
    assert len(store.load([writer.path])) == 6


def test_load_takes_files_runs_and_folders(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        first.write(cell(0, size=1))
    with start(tmp_path) as second:
        second.write(cell(1, size=1))
    both = [item.value for item in store.load([second.path, first.path])]
    assert both == [0.0, 1.0], "oldest first, whatever the order of the arguments"
    assert [item.value for item in store.load([tmp_path, first.path])] == both
    assert [item.value for item in store.load([second.path / "records.jsonl"])] == [1.0]
    with pytest.raises(PrerequisiteError, match="does not exist"):
        store.load([tmp_path / "nowhere"])
    assert store.runs(tmp_path / "nowhere") == []


def test_newest_per_cell() -> None:
    old, new = record(value=1.0), record(value=2.0)
    other = record(metric="bytes", value=5.0)
    assert [item.value for item in store.newest_per_cell([old, other, new])] == [5.0, 2.0]
    broken = record(metric="latency", status="failed", value=None, reason="killed")
    assert [item.status for item in store.newest_per_cell([old, broken])] == ["failed"], "the newest one counts"
    assert [item.status for item in store.newest_per_cell([broken, other])] == ["ok"]


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """kill -9 about twenty times: what was acknowledged is there once, what was not is absent or whole."""
    with start(tmp_path) as writer:
        pass
    rng, acknowledged, script = random.Random(0), set(), Path(__file__).with_name("crash_writer.py")
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    for attempt in range(20):
        last = 10_000 if attempt < 19 else len(acknowledged) + 5
        command = [sys.executable, str(script), str(writer.path), str(last)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            if attempt < 19:
                # So many cells first, however slow the machine is, and then a moment of the next ones.
                acknowledged |= {int(line) for line in itertools.islice(process.stdout, rng.randrange(5))}
                time.sleep(rng.random() * 0.01)
                process.kill()
            acknowledged |= {int(line) for line in process.stdout if line.endswith("\n")}
    with resume(writer.path) as again:
        finished = again.finished
    seen: dict[int, list[str]] = {}
    for item in store.load([writer.path]):
        seen.setdefault(item.params["index"], []).append(item.metric)
    assert len(acknowledged) > 20, "the writers were killed before they wrote"
    assert acknowledged <= set(seen), "a finished cell was lost"
    assert all(f"unit {index}" in finished for index in seen)
    assert all(len(set(metrics)) == len(metrics) for metrics in seen.values()), "a cell was doubled"
    rows = [(row["cell"], row["row"]) for row in store.load_samples(writer.path)]
    assert rows == [(str(index), row) for index in seen for row in range(2)]
