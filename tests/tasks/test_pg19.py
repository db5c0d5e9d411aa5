"""PG-19 on self-made books: which text is read, where the prediction starts, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_helpers import Rows, books, jsonl, parquet

from questbench.errors import PrerequisiteError, UsageError
from questbench.models.constructed.tokenizer import build_tokenizer
from questbench.tasks._base import StreamTask
from questbench.tasks._make import make_task

TOKENIZER = build_tokenizer()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path / "cache"))


def texts(folder: Path, rows: Rows) -> Path:
    folder.mkdir()
    for row in rows:
        (folder / f"{row['short_book_title']}.txt").write_text(row["text"])
    return folder


FORMS: dict[str, Callable[[Path], Path]] = {
    "parquet of the hub": lambda path: parquet(path / "data" / "test-00000-of-00001.parquet", books()).parent.parent,
    "jsonl": lambda path: jsonl(path / "books.jsonl", books()),
    "folder of texts": lambda path: texts(path / "books", books()),
}


def sample(data: Path, index: int = 0, length: int = 1024, spec: str = "pg19") -> Any:
    task = make_task(spec, {"*": str(data)})
    return task.sample(index, length=length, tokenizer=TOKENIZER, rng=random.Random(0))


@pytest.mark.parametrize("form", FORMS)
def test_beginning_of_each_book(form: str, tmp_path: Path) -> None:
    data = FORMS[form](tmp_path)
    task = make_task("pg19", {"*": str(data)})
    assert isinstance(task, StreamTask) and task.samples(None, 5000) == 2
    for index, book in enumerate(books()):
        got = sample(data, index)
        text = got.prompt
        assert book["text"].startswith(text)
        reached = len(TOKENIZER.encode(text))
        assert 0.95 * 1024 <= reached <= 1024
        assert got.meta["tokens"] == reached
        assert got.meta["title"] == f"Book {index}"
        assert got.meta["bytes"] == len(text.encode())
        assert got.answers == ("",) and got.meta["truncation"] == "end"


@pytest.mark.parametrize(("spec", "share"), [("pg19", 0.25), ("pg19:share=0.5", 0.5), ("pg19:prefill=100", 0.9)])
def test_where_the_prediction_starts(spec: str, share: float, tmp_path: Path) -> None:
    got = sample(FORMS["jsonl"](tmp_path), spec=spec)
    scored = len(TOKENIZER.encode(got.question, add_special_tokens=False))
    assert scored / got.meta["tokens"] == pytest.approx(share, abs=0.02)
    assert got.question[0] == " " and got.context[-1] != " ", "no word is cut"


def test_prefill_of_nothing_is_one_word(tmp_path: Path) -> None:
    got = sample(FORMS["jsonl"](tmp_path), spec="pg19:prefill=0")
    assert got.context == books()[0]["text"].split()[0]


def test_book_that_ends_at_the_length(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "x.jsonl", books(1, words=300))
    whole = len(TOKENIZER.encode(books(1, words=300)[0]["text"]))
    got = sample(data, length=whole)
    assert got.meta["tokens"] == whole and got.meta["truncation"] == "none"


def test_short_book_is_refused_with_its_length(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "x.jsonl", books(1, words=300))
    with pytest.raises(UsageError, match=r"book 0 of x\.jsonl has only") as error:
        sample(data, length=2048)
    assert sample(data, length=int(str(error.value.hint).split()[2].rstrip(","))).meta["truncation"] == "none"


@pytest.mark.parametrize("spec", ["pg19:share=0", "pg19:share=1.5"])
def test_impossible_shares(spec: str) -> None:
    with pytest.raises(UsageError, match="cannot score"):
        make_task(spec)


def test_prefill_that_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leaves nothing to predict"):
        sample(FORMS["jsonl"](tmp_path), spec="pg19:prefill=5000")


def test_empty_book_is_named(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "x.jsonl", [{"text": "a book"}, {"text": "  "}])
    with pytest.raises(PrerequisiteError, match=r"line 2: 'text' is an empty text"):
        sample(data)
