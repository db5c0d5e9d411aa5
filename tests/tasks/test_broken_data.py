"""Broken files in every format: each is refused before the run, with the file, the row and the field that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_helpers import (
    Rows,
    books,
    hotpot,
    hotpot_flat,
    json_array,
    jsonl,
    lines,
    longbench_rows,
    parquet,
    ruler_copy_row,
    ruler_row,
    squad_flat,
    zipped,
)

from questbench.errors import PrerequisiteError, UsageError
from questbench.tasks._data import DataTask
from questbench.tasks._make import make_task


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path / "cache"))


def refused(path: Path, spec: str) -> str:
    task = make_task(spec, {"*": str(path)})
    assert isinstance(task, DataTask)
    with pytest.raises(PrerequisiteError) as caught:
        task.table(1024)
    assert caught.value.hint
    return caught.value.message


def indented(path: Path, rows: Rows) -> Path:
    """An array with a row every few lines."""
    path.write_text(json.dumps(list(rows), indent=1))
    return path


def line_of(path: Path, rows: Rows, index: int) -> int:
    """The line on which row ``index`` of an indented array begins."""
    before = json.dumps([*rows][:index], indent=1).count("\n")
    assert path.read_text().split("\n")[before] == " {"
    return before + 1


LONGBENCH, TREC = longbench_rows("qasper"), longbench_rows("trec")
RULER, COPY = [ruler_row(index) for index in range(3)], [ruler_copy_row(index) for index in range(3)]
MULTI, SQUAD, HOTPOT = "ruler:set=niah_multivalue", "ruler_qa:set=squad", "ruler_qa:set=hotpotqa"
CASES: dict[str, tuple[str, list[dict[str, Any]], str, Any, str]] = {
    "another set": ("longbench:set=qasper", LONGBENCH, "dataset", "trec", "'dataset' is 'trec'"),
    "no classes": ("longbench:set=trec", TREC, "all_classes", [], "'all_classes' is empty"),
    "an answer that is none": (MULTI, RULER, "outputs", [""], "'outputs' is a list whose item 0 is an empty text"),
    "one of the copy": (MULTI, COPY, "answer", ["7", " "], "'answer' is a list whose item 1 is an empty text"),
    "answer of the hub's": (HOTPOT, hotpot_flat(), "answer", " ", "'answer' is an empty text"),
    "answer of SQuAD": (SQUAD, squad_flat(), "answers", {"text": ["a", ""]}, "answers.text[1] is an empty text"),
    "a text": ("pg19", books(3), "text", "", "'text' is an empty text"),
    "no question": (MULTI, RULER, "input", "Nothing is asked here.", "'input' has no question of ruler:set=niah"),
}
MIXED: dict[str, tuple[str, list[dict[str, Any]], str, Any, str]] = {
    "answer of HotpotQA": (HOTPOT, hotpot(), "answer", "", "'answer' is an empty text"),
    "a number for a set": (
        "longbench:set=qasper",
        LONGBENCH,
        "dataset",
        7,
        "'dataset' is a number, but must be a text",
    ),
    "no number": ("longbench:set=qasper", LONGBENCH, "length", float("nan"), "'length' is nan, but must be a finite"),
    "prefix": (MULTI, RULER, "answer_prefix", 7, "'answer_prefix' is a number, but must be a text or null"),
    "a number for a text": (SQUAD, squad_flat(), "answers", {"text": [3]}, "answers.text[0] is a number"),
    "facts": (HOTPOT, hotpot(), "supporting_facts", 5, "'supporting_facts' is a number, but must be a list"),
    "fact": (HOTPOT, hotpot(), "supporting_facts", [["A2", 0], 1], "supporting_facts[1] is a number, but must be a"),
    "title": (HOTPOT, hotpot(), "supporting_facts", [[["A2"], 0]], "supporting_facts[0] is a list, but must be a"),
    "no titles": (HOTPOT, hotpot_flat(), "supporting_facts", {"title": None}, "supporting_facts: 'title' is null"),
    "title of the hub's": (HOTPOT, hotpot_flat(), "supporting_facts", {"title": [1]}, "title[0] is a number"),
}


def archive(path: Path, rows: Rows) -> Path:
    """A zip file with the rows under every name that a task looks for."""
    names = ("data/qasper.jsonl", "data/trec.jsonl", "niah_multivalue.jsonl", "pg19.jsonl")
    arrays = ("dev-v2.0.json", "hotpotqa.json")
    return zipped(path, {name: lines(rows) for name in names} | {name: json.dumps(list(rows)) for name in arrays})


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {
    "x.jsonl": jsonl,
    "x.json": indented,
    "x.parquet": parquet,
    "x.zip": archive,
}


# A column of parquet has one type, so that what mixes them cannot be written.
TRIED = [(case, name) for case in (*CASES, *MIXED) for name in WRITERS if case in CASES or name != "x.parquet"]


@pytest.mark.parametrize(("case", "name"), TRIED)
def test_row_and_field_are_named(case: str, name: str, tmp_path: Path) -> None:
    spec, rows, column, value, message = (CASES | MIXED)[case]
    rows = [{**row, column: value} if index == 2 else row for index, row in enumerate(rows)]
    path = WRITERS[name](tmp_path / name, rows)
    where = {
        "x.jsonl": lambda: "line 3",
        "x.json": lambda: f"row 3 (line {line_of(path, rows, 2)})",
        "x.parquet": lambda: "row 3",
        "x.zip": lambda: "row 3 (line 1)" if spec in (SQUAD, HOTPOT) else "line 3",
    }[name]()
    found = refused(path, spec)
    assert found.startswith(f"{name}: " if name == "x.zip" else f"{name}, "), found
    assert f", {where}" in found, found
    assert message in found, found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n {"a": 2}\n {"a": 3}]', "line 3 is not JSON: Expecting ',' or ']'"),
        ('[{"a": 1},\n]', "line 2 is not JSON"),
        ('[{"a": 1},\n {"a": ', "line 2 is not JSON"),
        ('[{"a": 1}]\n\n[2]', "line 3 is not JSON: Text behind the array"),
        ('\n[\n\n{"a": 1},\n 7]', "row 2 (line 5) is a number"),
        ("[ ]", "is empty"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_arrays(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    assert message in refused(tmp_path / "x.json", "pg19")


def test_lines_that_are_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a":' * 100_000)
    assert "x.jsonl is nested too deeply" in refused(tmp_path / "x.jsonl", "pg19")


def test_an_array_is_read_whatever_its_blanks(tmp_path: Path) -> None:
    rows = books(3, words=20)
    for name, text in (
        ("dense", json.dumps(rows, separators=(",", ":"))),
        ("wide", f"\n {json.dumps(rows, indent=7)}\n"),
    ):
        path = tmp_path / f"{name}.json"
        path.write_text(text)
        task = make_task("pg19", {"*": str(path)})
        assert isinstance(task, DataTask)
        table = task.table(64)
        assert [table[index] for index in range(len(table))] == rows


def test_what_is_wrong_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing else")
    assert "x.parquet cannot be read as parquet" in refused(tmp_path / "x.parquet", "pg19")
    assert capfd.readouterr().err == ""


def test_rows_without_a_set_are_taken(tmp_path: Path) -> None:
    rows = [{**row, "dataset": None} for row in LONGBENCH]
    task = make_task("longbench:set=qasper", {"*": str(jsonl(tmp_path / "x.jsonl", rows))})
    assert isinstance(task, DataTask) and len(task.table(1024)) == 3


def test_of_a_folder_of_texts_the_file_is_named(tmp_path: Path) -> None:
    for name, text in (("a", "A book."), ("b", " \n"), ("c", "Another one.")):
        (tmp_path / f"{name}.txt").write_text(text)
    assert refused(tmp_path, "pg19").startswith("b.txt: 'text' is an empty text")
    assert refused(zipped(tmp_path / "x.zip", {"a.txt": ""}), "pg19").startswith("x.zip: a.txt: 'text' is an empty")


SURROGATE = {"_id": "id\ud800", "context": "text \udfff", "answers": ["a", "b\ud83d"]}


@pytest.mark.parametrize("field", SURROGATE)
@pytest.mark.parametrize("write", [jsonl, json_array], ids=["jsonl", "json"])
def test_half_a_pair_of_surrogates_is_named_by_line_and_field(
    field: str, write: Callable[[Path, Rows], Path], tmp_path: Path
) -> None:
    rows = [LONGBENCH[0], {**LONGBENCH[1], field: SURROGATE[field]}]
    path = tmp_path / ("x.jsonl" if write is jsonl else "x.json")
    text = [json.dumps(row) for row in rows]
    path.write_text("\n".join(text) if write is jsonl else "[" + ",\n".join(text) + "]")
    message = refused(path, "longbench:set=qasper")
    assert "line 2" in message and f"'{field}' holds \\u" in message and "half of a pair" in message
    message.encode()


def test_a_whole_pair_is_a_character(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({**LONGBENCH[0], "context": "a smile \U0001f600 " * 9}) + "\n")
    assert len(make_task("longbench:set=qasper", {"*": str(path)}).table(1024)) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("spec", ["kv:records=²", "docqa:passages=²", "multiturn:records=²", "kv:records=" + "9" * 400])
def test_digits_that_are_no_number_are_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError):
        make_task(spec)
