"""``accuracy --data`` from the command line to the records, on self-made files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_helpers import books, jsonl, longbench_rows, longbench_zip

from questbench import flags
from questbench.records import store


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_rows_become_scores_with_their_origin(questbench: Callable[..., Any], tmp_path: Path) -> None:
    path = longbench_zip(tmp_path / "data.zip", ["passage_count", "trec"])
    task = "longbench:set=passage_count+trec"
    line = f"accuracy --task {task} --samples 1 --seq-len 384 --method quest --budget 64 --threads 1"
    ended = questbench(*line.split(), "--data", path, "--out", "results")
    assert ended.code == 0, ended.err
    assert "data.zip: data/trec.jsonl (3 rows" in " ".join(ended.err.split())
    (run,) = store.runs(tmp_path / "results")
    rows = store.load_samples(run)
    assert {row["task"] for row in rows} == {"longbench:set=passage_count", "longbench:set=trec"}
    assert all(row["meta"]["data"]["rows"] == 3 and len(row["meta"]["data"]["sha256"]) == 64 for row in rows)
    assert all(row["meta"]["truncation"] == "middle" and row["prompt_tokens"] <= 384 for row in rows)
    assert all(0 <= row["score"] <= 1 for row in rows)
    assert store.load_manifest(run).config["data"] == {"*": str(path)}
    again = questbench("accuracy", "--resume", run)
    assert again.code == 0, again.err


def test_perplexity_of_books(questbench: Callable[..., Any], tmp_path: Path) -> None:
    """Two tasks, each with data of its own and its own protocol."""
    jsonl(tmp_path / "books.jsonl", books(2, words=400))
    jsonl(tmp_path / "qasper.jsonl", longbench_rows("qasper"))
    line = "accuracy --task pg19:share=0.1,longbench:set=qasper --samples 1 --seq-len 600 --method streaming_llm"
    more = f"--budget 64 --threads 1 --data pg19=books.jsonl --data longbench={tmp_path} --out results"
    ended = questbench(*line.split(), *more.split())
    assert ended.code == 0, ended.err
    (run,) = store.runs(tmp_path / "results")
    records = [record for record in store.load([run]) if record.params["task"].startswith("pg19")]
    perplexity = {record.method: record.value for record in records if record.metric == "perplexity"}
    assert set(perplexity) == {"dense", "streaming_llm"} and all(value > 1 for value in perplexity.values())
    assert {record.params["protocol"] for record in records} == {"stream"}
    (row, *_) = [row for row in store.load_samples(run) if row["task"].startswith("pg19")]
    assert row["meta"]["title"] == "Book 0" and row["meta"]["data"]["file"] == "books.jsonl"


def test_chat_templates_stand_around_some_prompts_only(tmp_path: Path) -> None:
    """LongBench's few-shot sets and code are continued, not asked; the paper's last characters count the template."""
    from questbench.experiments.accuracy import AccuracyConfig, Work
    from questbench.experiments.accuracy.chat import Chat
    from questbench.experiments.accuracy.session import Session
    from questbench.models.constructed.tokenizer import build_tokenizer
    from questbench.tasks._make import make_task

    chat = Chat("USER: ", " ASSISTANT:", "\n")
    path = longbench_zip(tmp_path / "data.zip", ["gov_report", "trec"])
    report, trec = (make_task(f"longbench:set={name}", {"*": str(path)}) for name in ("gov_report", "trec"))

    def chat_for(task: Any, mode: str) -> Chat | None:
        config = AccuracyConfig(tasks=[task.label], chat_template=mode)
        session = Session(config, None, None, 1, frozenset(), chat, None)  # type: ignore[arg-type]
        return session.chat_for(Work(task.label, task, 512, 1, "stepwise"))

    assert chat_for(report, "auto") is chat
    assert chat_for(trec, "auto") is None
    assert chat_for(trec, "on") is chat
    sample = report.sample(0, length=4096, tokenizer=build_tokenizer(), rng=random.Random(0))
    fed = "Now, write a one-page summary of the report.\n\nSummary:"
    assert report.last_chars(sample) == len(fed)
    assert report.last_chars(chat.wrap(sample)) == len(fed + " ASSISTANT:")


REFUSED = {
    "no data": ("longbench:set=qasper", 3, "needs data"),
    "pg19": ("pg19", 3, "emozilla/pg19-test"),
    "ruler": ("ruler:set=vt", 3, "NVIDIA/RULER"),
    "no such file": ("longbench:set=qasper --data none.jsonl", 3, "There is no file or folder 'none.jsonl'"),
    "broken row": ("longbench:set=qasper --data broken.jsonl", 3, "broken.jsonl, line 2 lacks 'context'"),
    "too many": ("longbench:set=qasper --data fine.jsonl --samples 9", 2, "has 3 samples in fine.jsonl, not 9"),
    "no task for it": ("passkey --data fine.jsonl", 2, "no task of this run takes data"),
    "another task": ("longbench:set=qasper --data pg19=fine.jsonl", 2, "pg19 is no task of this run"),
    "twice": ("longbench --data a --data b", 2, "--data is given twice for all tasks"),
    "empty": ("longbench --data longbench=", 2, "names nothing"),
    "hub": ("longbench --data hf:nobody", 2, "owner/name"),
    "checksum": ("longbench:set=qasper:sha256=00000000 --data fine.jsonl", 3, "not 00000000"),
}


@pytest.mark.parametrize(("line", "code", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(line: str, code: int, text: str, questbench: Callable[..., Any], tmp_path: Path) -> None:
    rows = longbench_rows("qasper")
    jsonl(tmp_path / "fine.jsonl", rows)
    (tmp_path / "broken.jsonl").write_text(json.dumps(rows[0]) + '\n{"input": "a"}\n')
    ended = questbench("accuracy", "--task", *line.split())
    assert ended.code == code, ended.err
    assert text in ended.err
    assert "error: " in ended.err and "next:  " in ended.err
    assert not store.runs(tmp_path / "results")


def test_data_by_task_or_for_all() -> None:
    def data_sources(given: object) -> object:
        return flags.data_sources(given, "--data")

    assert data_sources({"pg19": "books", "*": "a=b"}) == {"pg19": "books", "*": "a=b"}, "as run.json holds it"
    assert data_sources(["LongBench", "pg19=books"]) == {"*": "LongBench", "pg19": "books"}
    assert data_sources(["folder=old/x.jsonl"]) == {"*": "folder=old/x.jsonl"}, "a path may have an equals sign"
    assert data_sources(["hf:owner/name@v1"]) == {"*": "hf:owner/name@v1"}
