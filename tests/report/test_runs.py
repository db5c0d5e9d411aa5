"""Which runs a report shows: one run per line, nothing left out silently, only its own files in its folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import golden
import pandas as pd
import pytest

from questbench import report
from questbench.errors import PrerequisiteError
from questbench.records import store

BUSY = {**golden.ENVIRONMENT, "load": [3.2, 1.0, 1.0], "cpu": {"usable_cores": 2}}


def two_runs(results: Path) -> tuple[Path, Path]:
    """Neither has all cells of the other."""
    first = golden.write_run(results, golden.kernel((8192, 16384), (1024,)), environment=BUSY)
    return first, golden.write_run(results, golden.kernel((16384, 32768), (1024,), seed=1))


def test_every_run_has_rows_and_lines_of_its_own(tmp_path: Path) -> None:
    first, second = two_runs(tmp_path)
    made = report.build(results=tmp_path, plots=["latency_by_length"])
    (table,) = made.tables
    column = table.columns.index("run mark")
    rows = [(row[0].text, row[column].text) for row in table.rows if row[column + 1].text == "quest"]
    assert rows == [("8k", "A"), ("16k", "A"), ("16k", "B"), ("32k", "B")]
    (line,) = [line for line in table.setup if line.startswith("Runs: ")]
    assert f"A = {first.name} (commit 0123456789, load 3.2 on 2 cores)" in line
    assert f"B = {second.name} (commit 0123456789)" in line
    drawn = pd.read_csv(tmp_path / "report" / "figures" / "latency_by_length.csv")
    lines = drawn[drawn["label"].str.startswith("quest")].groupby("label")["seq_len"].apply(list).to_dict()
    assert lines == {"quest [A]": [8192, 16384], "quest [B]": [16384, 32768]}
    assert "| A |" in (tmp_path / "report" / "report.md").read_text(), "the list of runs names the marks"


def test_join_makes_one_line_of_several_runs(tmp_path: Path) -> None:
    two_runs(tmp_path)
    made = report.build(results=tmp_path, plots=["latency_by_length"], join=True)
    drawn = pd.read_csv(tmp_path / "report" / "figures" / "latency_by_length.csv")
    assert sorted(drawn[drawn["label"].str.startswith("quest")]["seq_len"]) == [
        8192,
        16384,
        32768,
    ]
    (table,) = made.tables
    column = table.columns.index("run mark")
    assert [row[column].text for row in table.rows if row[column + 1].text == "quest"] == ["A", "B", "B"]


def test_a_single_run_has_no_mark(tmp_path: Path) -> None:
    golden.write_run(tmp_path, golden.kernel((8192,), (1024,)))
    (table,) = report.build(results=tmp_path, plots=[]).tables
    assert "run mark" not in table.columns
    assert not any(line.startswith("Runs:") for line in table.setup)


def test_what_is_left_out_is_said_and_why(tmp_path: Path) -> None:
    old = golden.write_run(tmp_path, golden.kernel((8192,), (1024,)))
    empty = golden.write_run(tmp_path, [])
    broken = golden.write_run(tmp_path, golden.kernel((8192,), (1024,), seed=4))
    (broken / "run.json").write_text("{")
    new = golden.write_run(tmp_path, golden.kernel((8192,), (1024,), seed=2))
    made = report.build(results=tmp_path, plots=[])
    assert {record.run for record in made.records} == {new.name}
    text = " ".join(made.notes)
    assert f"{old.name} is left out: newer runs have all its cells" in text
    assert f"{empty.name} is left out: no results" in text
    assert f"{broken.name} is left out: " in text and "run.json" in text
    assert broken.name in (tmp_path / "report" / "report.md").read_text()
    named = report.build([old, new], results=tmp_path, plots=[])
    assert {record.run for record in named.records} == {old.name, new.name}, "a run that is named is shown"
    with pytest.raises(PrerequisiteError, match=r"run\.json"):
        report.build([broken], results=tmp_path, plots=[])


def test_a_newer_failure_replaces_no_success(tmp_path: Path) -> None:
    records = golden.kernel((8192,), (1024,))
    old = golden.write_run(tmp_path, records)
    failed = [dataclasses.replace(record, status="failed", value=None, reason="x", samples=[]) for record in records]
    golden.write_run(tmp_path, failed)
    assert old.name in {record.run for record in report.build(results=tmp_path, plots=[]).records}


def test_an_unfinished_run_is_shown_as_such(tmp_path: Path) -> None:
    run = golden.write_run(tmp_path, golden.kernel((8192, 16384), (1024,)))
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**manifest, "end": None, "exit_code": None}))
    (table,) = report.build(results=tmp_path, plots=[]).tables
    assert table.warnings[0] == f"Run {run.name} has not ended: these are its results so far"
    assert "unfinished" in (tmp_path / "report" / "report.md").read_text()


def test_runs_are_found_by_name_in_the_results_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two_runs(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    made = report.build([Path(first.name)], results=tmp_path / "results", plots=[])
    assert {record.run for record in made.records} == {first.name}
    compared = report.build(
        [Path(second.name)], results=tmp_path / "results", compare=first.name, plots=[], out=tmp_path / "other"
    )
    assert compared.comparison


def test_the_folder_holds_what_this_report_made(tmp_path: Path) -> None:
    run = golden.write_run(tmp_path, golden.kernel((8192, 16384), (1024,)))
    out = tmp_path / "report"
    report.build([run], out, formats=["md", "html", "csv"])
    own = out / "figures" / "mine.png"
    own.write_text("not a report's")
    outside = tmp_path / "precious.png"
    outside.write_text("not a report's either")
    with (out / ".report-files").open("a") as listed:
        listed.write("../precious.png\nfigures/../../precious.png\n")
    made = report.build([run], out, plots=["stage_breakdown"], formats=["md"])
    there = {path for path in out.rglob("*") if path.is_file() and path.name != ".report-files"}
    assert there == {*made.paths, own}
    assert outside.is_file()
    assert any("files of an earlier report were removed" in note for note in made.notes)


def test_tables_as_csv_and_latex(tmp_path: Path) -> None:
    run = golden.write_run(tmp_path, golden.kernel((8192,), (1024,), shape="a_b & 100%"))
    made = report.build([run], tmp_path / "out", plots=[], formats=["csv", "latex"])
    assert [path.suffix for path in made.paths] == [".csv", ".tex"]
    data = pd.read_csv(made.paths[0])
    assert list(data["method"])[:2] == ["dense", "torch"]
    text = made.paths[1].read_text()
    assert "\\toprule" in text and "streaming\\_llm" in text and text.count("\\begin{tabular}") == 1
    assert not (tmp_path / "out" / "report.md").exists()


def test_a_copied_run_counts_once(tmp_path: Path) -> None:
    import shutil

    run = golden.write_run(tmp_path, golden.kernel((8192,), (1024,)))
    shutil.copytree(run, tmp_path / "copy")
    made = report.build([tmp_path], tmp_path / "out", plots=[])
    assert len(made.records) == len(store.load([run]))
    assert any("is a copy of run" in note for note in made.notes)
