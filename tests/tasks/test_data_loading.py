"""``--data``: the same rows out of every kind of file, and of what is missing or broken a message that helps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_helpers import (
    WRITERS,
    Rows,
    jsonl,
    lines,
    longbench_rows,
    longbench_zip,
    parquet,
    prose,
    zipped,
)

from questbench import registry
from questbench.errors import PrerequisiteError, UsageError
from questbench.tasks import _data_files
from questbench.tasks._base import Task
from questbench.tasks._data import DataTask, check_use
from questbench.tasks._make import expand, make_task

SPEC = "longbench:set=qasper"
ROWS = longbench_rows("qasper")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path / "cache"))


def task(data: Path | str, spec: str = SPEC, **parameters: Any) -> Any:
    return make_task(spec, {"*": str(data)}, **parameters)


def refused(data: Path | str, spec: str = SPEC, length: int = 4096) -> PrerequisiteError:
    """The error of reading a task's table; every one has a next step."""
    with pytest.raises(PrerequisiteError) as caught:
        task(data, spec).table(length)
    assert caught.value.hint
    return caught.value


# ---- formats and places -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_has_the_same_rows(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name, ROWS)
    table = task(path).table(4096)
    assert [table[index] for index in range(len(table))] == ROWS
    assert table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert task(path).samples(None, 4096) == 3


PLACES: dict[str, Callable[[Path, Rows], Path]] = {
    "qasper.jsonl": jsonl,
    "data/qasper.jsonl": jsonl,
    "qasper/test-00000-of-00001.parquet": parquet,
    "qasper/test/0000.parquet": parquet,
}


@pytest.mark.parametrize("place", PLACES)
def test_folders_as_they_are_around(place: str, tmp_path: Path) -> None:
    PLACES[place](tmp_path / place, ROWS)
    assert len(task(tmp_path).table(4096)) == 3


@pytest.mark.parametrize("folder", ["data/", "LongBench/data/", ""])
def test_zip_file(folder: str, tmp_path: Path) -> None:
    members = {f"{folder}{name}.jsonl": lines(longbench_rows(name)) for name in ("qasper", "trec")}
    path = zipped(tmp_path / "data.zip", members | {"__MACOSX/data/qasper.jsonl": "\x00"})
    table = task(path).table(4096)
    assert table[0] == ROWS[0]
    assert table.name == f"data.zip: {folder}qasper.jsonl"
    assert table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert task(tmp_path).table(4096)[0] == ROWS[0], "data.zip of a folder"
    assert task(path, "longbench:set=trec").table(4096)[0]["all_classes"]


def test_shards_are_one_table(tmp_path: Path) -> None:
    parquet(tmp_path / "qasper" / "test-00000-of-00002.parquet", ROWS[:2])
    parquet(tmp_path / "qasper" / "test-00001-of-00002.parquet", ROWS[2:])
    table = task(tmp_path).table(4096)
    assert [table[index]["_id"] for index in range(3)] == [row["_id"] for row in ROWS]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    for name, write in WRITERS.items():
        path = write(tmp_path / name, ROWS)
        assert len(task(path).table(4096)) == 3
        write(path, ROWS[:1])
        assert len(task(path).table(4096)) == 1, name


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf\n" + lines(ROWS).replace("\n", "\r\n\n").encode())
    table = task(tmp_path / "x.jsonl").table(4096)
    assert len(table) == 3
    assert table.where(1).endswith("line 4")


def test_line_separators_inside_a_text_end_no_line(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "context": "one\u2028two\x85three"}]
    assert task(jsonl(tmp_path / "x.jsonl", rows)).table(4096)[0]["context"] == "one\u2028two\x85three"


def test_json_lines_named_json(tmp_path: Path) -> None:
    assert len(task(jsonl(tmp_path / "x.json", ROWS)).table(4096)) == 3


# ---- what is wrong is named ---------------------------------------------------------------------------------------


def without(column: str, index: int = 1) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if place != index or k != column} for place, row in enumerate(ROWS)]


def changed(column: str, value: Any, index: int = 2) -> list[dict[str, Any]]:
    return [{**row, column: value} if place == index else row for place, row in enumerate(ROWS)]


BROKEN: dict[str, tuple[str, str]] = {
    "empty file": ("", "is empty"),
    "blank file": ("\n\n", "is empty"),
    "not JSON": (lines(ROWS[:1]) + '{"input": \n', "x.jsonl, line 2 is not JSON"),
    "cut off": (lines(ROWS)[:-40], "x.jsonl, line 3 is not JSON"),
    "no object": (lines(ROWS[:1]) + "[1, 2]\n", "line 2 is a list"),
    "column gone from all": (
        lines([{"input": "a", "context": "b"}]),
        "line 1 lacks 'answers', 'length', 'all_classes'",
    ),
    "column gone from one": (lines(without("answers")), "line 2 lacks 'answers'"),
    "another schema": (lines([{"prompt": "a", "completion": "b"}]), "this has prompt, completion"),
    "text for a list": (lines(changed("answers", "copper")), "line 3: 'answers' is a text, but must be a list of one"),
    "no answers": (lines(changed("answers", [])), "line 3: 'answers' is an empty list"),
    "numbers for texts": (lines(changed("answers", [1, 2])), "line 3: 'answers' is a list whose item 0 is a number"),
    "null for a text": (lines(changed("input", None)), "line 3: 'input' is null, but must be a text"),
    "no context": (lines(changed("context", " \n")), "line 3: 'context' is an empty text"),
    "truth for a number": (lines(changed("length", True)), "line 3: 'length' is a truth value"),
    "another set": (lines(longbench_rows("hotpotqa")), "x.jsonl, line 1: 'dataset' is 'hotpotqa'"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_rows_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    assert message in refused(tmp_path / "x.jsonl").message


def test_rows_of_formats_without_lines_are_named_by_number(tmp_path: Path) -> None:
    for name in ("x.json", "x.parquet"):
        WRITERS[name](tmp_path / name, changed("answers", []))
        line = " (line 1)" if name == "x.json" else ""
        assert f"{name}, row 3{line}: 'answers' is an empty list" in refused(tmp_path / name).message


def test_broken_json_array(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('[{"input": "a"},\n {"input": b}]')
    assert "x.json, line 2 is not JSON" in refused(tmp_path / "x.json").message
    (tmp_path / "x.json").write_text('["a"]')
    assert "x.json, row 1 (line 1) is a text" in refused(tmp_path / "x.json").message


def test_wrong_encoding(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(lines(ROWS[:1]).encode() + '{"input": "é"}'.encode("latin-1"))
    assert "x.jsonl, line 2 is not UTF-8" in refused(tmp_path / "x.jsonl").message


@pytest.mark.parametrize("name", ["x.parquet", "x.zip"])
@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
def test_corrupt_files(name: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if damage == "garbage":
        path.write_bytes(b"neither one nor the other " * 50)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        whole = (longbench_zip(path, ["qasper"]) if name == "x.zip" else parquet(path, ROWS)).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    error = refused(path)
    assert name in error.message
    assert "ownload" in str(error.hint)


def test_corrupt_member_of_a_zip_file(tmp_path: Path) -> None:
    path = longbench_zip(tmp_path / "data.zip", ["qasper"])
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 40] = bytes(40)
    path.write_bytes(whole)
    assert "data.zip: data/qasper.jsonl cannot be read" in refused(path).message


def test_zip_file_without_the_set(tmp_path: Path) -> None:
    error = refused(longbench_zip(tmp_path / "data.zip", ["trec"]))
    assert "holds no data for longbench:set=qasper (looked for qasper.jsonl, data/qasper.jsonl" in error.message


def test_folder_without_the_set(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert "holds no data for longbench:set=qasper" in error.message
    assert "data.zip" in error.message and "--data hf:zai-org/LongBench --online" in str(error.hint)


def test_no_such_file(tmp_path: Path) -> None:
    assert "There is no file or folder" in refused(tmp_path / "none.jsonl").message


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n")
    with pytest.raises(UsageError, match=r"'\.csv' are not read"):
        task(tmp_path / "x.csv").table(4096)


def test_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "x.parquet", ROWS)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path / "file"))
    assert "QUESTBENCH_CACHE" in str(refused(path).hint)


# ---- checksums and counts -----------------------------------------------------------------------------------------


def test_checksum_that_is_asked_for(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", ROWS)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(task(path, f"{SPEC}:sha256={digest[:12]}").table(4096)) == 3
    error = refused(path, f"{SPEC}:sha256=0123456789ab")
    assert digest in error.message and "not 0123456789ab" in error.message


def test_more_samples_than_rows(tmp_path: Path) -> None:
    found = task(jsonl(tmp_path / "x.jsonl", ROWS))
    assert found.samples(2, 4096) == 2
    with pytest.raises(UsageError, match=r"has 3 samples in x\.jsonl, not 4"):
        found.samples(4, 4096)
    with pytest.raises(UsageError, match="there is no number 3"):
        found.row(3, 4096)


# ---- the hub ------------------------------------------------------------------------------------------------------


def test_hub_name_is_checked() -> None:
    for name in ("hf:LongBench", "hf:a/b/c", "hf:"):
        with pytest.raises(UsageError, match="owner/name"):
            task(name).table(4096)


def test_hub_offline_asks_for_online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    _data_files._snapshot.cache_clear()
    error = refused("hf:nobody/nothing")
    assert "has not been downloaded" in error.message
    assert "--online" in str(error.hint)


def test_hub_snapshot_is_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is asked of the hub's client: data files of a data repository, offline unless told otherwise; never code."""
    longbench_zip(tmp_path / "data.zip", ["qasper"])
    asked: list[dict[str, Any]] = []

    def snapshot_download(name: str, **settings: Any) -> str:
        asked.append({"name": name, **settings})
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    _data_files._snapshot.cache_clear()
    assert len(task("hf:zai-org/LongBench").table(4096)) == 3
    assert len(task("hf:zai-org/LongBench@main", online=True).table(4096)) == 3
    _data_files._snapshot.cache_clear()
    assert [one["local_files_only"] for one in asked] == [True, False]
    assert [one["revision"] for one in asked] == [None, "main"]
    assert all(one["repo_type"] == "dataset" for one in asked)
    assert all("data.zip" in one["allow_patterns"] for one in asked)
    assert not any(pattern.endswith((".py", "*")) for one in asked for pattern in one["allow_patterns"])


# ---- every task on data -------------------------------------------------------------------------------------------

DATA_TASKS = [
    name
    for name in registry.names("questbench.tasks")
    if issubclass(kind := registry.load("questbench.tasks", name, Task, kind="task"), DataTask)  # type: ignore[type-abstract]
    and kind.required
]


def test_the_tasks_on_data() -> None:
    assert {"longbench", "longbench_e", "pg19", "ruler", "ruler_qa"} <= set(DATA_TASKS)


@pytest.mark.parametrize("name", DATA_TASKS)
def test_without_data_it_says_what_to_fetch(name: str) -> None:
    for spec in expand([name]):
        found = make_task(spec)
        assert isinstance(found, DataTask)
        for attempt in (lambda one=found: one.samples(1, 4096), lambda one=found: one.row(0, 4096)):
            with pytest.raises(PrerequisiteError, match="needs data, which questbench does not ship") as error:
                attempt()
            hint = str(error.value.hint)
            assert error.value.exit_code == 3
            assert "://" in hint and "--data" in hint and "--online" in hint


@pytest.mark.parametrize("name", DATA_TASKS)
def test_a_stranger_is_refused_with_its_columns(name: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"color": "red", "size": 3}])
    for spec in expand([name])[:2]:
        message = refused(path, spec).message
        assert "x.jsonl, line 1 lacks" in message
        assert "this has color, size" in message


@pytest.mark.parametrize("name", DATA_TASKS)
def test_ls_says_that_data_is_needed(name: str, questbench: Callable[..., Any]) -> None:
    listed = [json.loads(line) for line in questbench("ls", "tasks", "--json").out.splitlines()]
    (row,) = [row for row in listed if row["name"] == name]
    assert row["summary"].startswith("Needs --data: ")
    assert row["source"].startswith("https://")


def test_sets_become_specs() -> None:
    paper = expand(["longbench"])
    assert paper == [
        f"longbench:set={name}"
        for name in ("qasper", "narrativeqa", "hotpotqa", "multifieldqa_en", "gov_report", "triviaqa")
    ]
    assert expand(["longbench:set=paper"]) == paper
    assert len(expand(["longbench:set=english"])) == 16
    assert len(expand(["longbench_e"])) == 13
    assert len(expand(["ruler"])) == 13 and len(expand(["ruler:set=niah"])) == 8
    assert expand(["ruler_qa"]) == ["ruler_qa:set=squad", "ruler_qa:set=hotpotqa"]
    both = expand(["longbench_e:bucket=8k+:set=trec+lcc", "passkey", "longbench_e:set=lcc:bucket=8k+"])
    assert both == ["longbench_e:set=trec:bucket=8k+", "longbench_e:set=lcc:bucket=8k+", "passkey"]
    assert expand(["kv:records=4", "pg19", "pg19:share=0.5"]) == ["kv:records=4", "pg19", "pg19:share=0.5"]


@pytest.mark.parametrize(
    "spec",
    ["longbench:set=lambada", "longbench_e:set=musique", "longbench_e:bucket=9k", "ruler:set=x", "ruler_qa:set=x"],
)
def test_unknown_sets_list_the_known(spec: str) -> None:
    with pytest.raises(UsageError, match="Known: "):
        make_task(spec)


def test_chinese_sets_say_why_not() -> None:
    with pytest.raises(UsageError, match="Chinese"):
        make_task("longbench:set=dureader")


def test_data_of_one_task_and_of_all(tmp_path: Path) -> None:
    where = {"pg19": "books", "*": "rest"}
    assert make_task("pg19", where).data == "books"  # type: ignore[attr-defined]
    assert make_task(SPEC, where, online=True).data == "rest"  # type: ignore[attr-defined]
    assert make_task(f"{SPEC}:data=own.jsonl", where).data == "own.jsonl"  # type: ignore[attr-defined]
    check_use([("pg19", True), ("kv", False), ("longbench", True)], where)
    with pytest.raises(UsageError, match="kv is no task of this run that takes data"):
        check_use([("pg19", True), ("kv", False)], {"kv": "x"})
    with pytest.raises(UsageError, match="no task of this run takes data"):
        check_use([("kv", False)], {"*": "x"})


def test_prose_is_the_same_for_the_same_seed() -> None:
    assert prose(30, 1) == prose(30, 1) != prose(30, 2)
