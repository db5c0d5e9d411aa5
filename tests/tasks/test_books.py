"""Windows of the user's books: which text each sample is, where texts may come from, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from data_helpers import books, jsonl, prose

from questbench.errors import PrerequisiteError, QuestbenchError, UsageError
from questbench.experiments.accuracy.config import AccuracyConfig
from questbench.experiments.accuracy.experiment import card
from questbench.experiments.accuracy.inputs import data_files
from questbench.models.constructed.tokenizer import build_tokenizer
from questbench.tasks._base import StreamTask
from questbench.tasks._data import DataTask
from questbench.tasks._make import make_task

TOKENIZER = build_tokenizer()
LENGTH = 256


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Two books of several windows, one of them deeper."""
    (tmp_path / "shelf" / "deeper").mkdir(parents=True)
    (tmp_path / "shelf" / "deeper" / "a.txt").write_text(prose(900, "a"))
    (tmp_path / "shelf" / "deeper" / "b.txt").write_text("\ufeff" + prose(700, "b") + "\n")
    return tmp_path / "shelf"


def sample(data: object, index: int = 0, length: int = LENGTH, spec: str = "ppl") -> Any:
    return make_task(spec, {"*": str(data)}).sample(index, length=length, tokenizer=TOKENIZER, rng=random.Random(0))


def refused(data: object, index: int = 0, length: int = LENGTH) -> QuestbenchError:
    task = make_task("ppl", {"*": str(data)})
    with pytest.raises(QuestbenchError) as error:
        task.samples(None, length), task.sample(index, length=length, tokenizer=TOKENIZER, rng=random.Random(0))
    assert error.value.hint
    return error.value


@pytest.mark.parametrize("spec", ["ppl", "pg19"])
def test_windows_follow_each_other_book_by_book(spec: str, shelf: Path) -> None:
    texts = [(shelf / "deeper" / f"{name}.txt").read_text(encoding="utf-8-sig") for name in "ab"]
    found = [sample(shelf, index, spec=spec) for index in range(4)]
    for index, one in enumerate(found):
        assert one.prompt in texts[index % 2]
        assert one.meta["title"] == "ab"[index % 2]
        reached = len(TOKENIZER.encode(one.prompt))
        assert 0.95 * LENGTH <= reached <= LENGTH and one.meta["tokens"] == reached
    for book in (0, 1):
        first, second = found[book].prompt, found[book + 2].prompt
        start = found[book + 2].meta["first_char"]
        assert texts[book].startswith(first) and texts[book][start:].startswith(second)
        assert texts[book][len(first) : start].isspace(), "nothing is read twice and no word is left out"


class Counting:
    """A tokenizer that adds up the characters that it is given."""

    def __init__(self) -> None:
        self.characters = 0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.characters += len(text)
        ids: list[int] = TOKENIZER.encode(text, add_special_tokens=add_special_tokens)
        return ids


def test_a_late_window_costs_no_more_than_an_early_one(tmp_path: Path) -> None:
    """Borders are found once, each from the one before it: all windows of a book cost what the book is long."""
    path = tmp_path / "long.txt"
    path.write_text(prose(12_000))
    task, spent, found = make_task("ppl", {"*": str(path)}), [], []
    tokenizer = Counting()
    for index in range(20):
        before = tokenizer.characters
        found.append(task.sample(index, length=LENGTH, tokenizer=tokenizer, rng=random.Random(0)))  # type: ignore[arg-type]
        spent.append(tokenizer.characters - before)
    assert sum(spent[10:]) < 1.5 * sum(spent[:10])
    assert found[13] == task.sample(13, length=LENGTH, tokenizer=Counting(), rng=random.Random(0)), "in any order"  # type: ignore[arg-type]


def test_a_window_behind_the_end_says_so(shelf: Path) -> None:
    error = refused(shelf, index=40)
    assert "window 20 of book 0" in error.message and "--samples 40 or fewer" in str(error.hint)


def test_more_windows_than_there_can_be_are_refused(shelf: Path) -> None:
    task = make_task("ppl", {"*": str(shelf)})
    assert task.samples(6, LENGTH) == 6
    with pytest.raises(UsageError, match="at most") as error:
        task.samples(10_000, LENGTH)
    assert "--samples" in str(error.value.hint)


def test_the_default_is_a_few_windows_and_no_more_than_a_short_book_has(tmp_path: Path) -> None:
    long, short = tmp_path / "long.txt", tmp_path / "short.txt"
    long.write_text(prose(6000))
    short.write_text(prose(260))
    assert make_task("ppl", {"*": str(long)}).samples(None, LENGTH) == 4
    assert make_task("ppl", {"*": str(short)}).samples(None, LENGTH) == 1


def test_without_data_the_book_is_our_own() -> None:
    task = make_task("ppl")
    assert isinstance(task, DataTask) and isinstance(task, StreamTask) and not task.reads
    assert task.samples(None, 4096) == task.default_samples and task.samples(999, 4096) == 999
    own = task.sample(0, length=600, tokenizer=TOKENIZER, rng=random.Random(0))
    assert own.recalls and "data" not in own.meta


def test_a_run_keeps_the_hash_of_the_books_that_it_reads_and_of_no_others(shelf: Path) -> None:
    assert data_files([("ppl", make_task("ppl"), LENGTH)]) == {}
    ((name, digest),) = data_files([("ppl", make_task("ppl", {"*": str(shelf)}), LENGTH)]).items()
    assert name.endswith("a.txt and 1 more") and len(digest) == 64
    assert "data" not in card(AccuracyConfig(tasks=["ppl"], samples=1, seq_lens=[4096]))
    assert "a.txt" in card(AccuracyConfig(tasks=["ppl"], samples=1, seq_lens=[LENGTH], data={"*": str(shelf)}))["data"]


@pytest.mark.parametrize("suffix", [".txt", ".md", ".jsonl"])
def test_a_file_is_enough(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"book{suffix}"
    if suffix == ".jsonl":
        jsonl(path, books(1))
    else:
        path.write_text(books(1)[0]["text"])
    got = sample(path)
    assert books(1)[0]["text"].startswith(got.prompt) and got.meta["data"]["file"] == path.name


def install(folder: Path, name: str, files: dict[str, str]) -> None:
    """A distribution as pip leaves it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    listed = [*files, f"{info.name}/METADATA", f"{info.name}/top_level.txt"]
    (info / "top_level.txt").write_text(name)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in listed))


def test_texts_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "plays/z/b.md": prose(700, "b"),
        "plays/a/c.md": prose(700, "c"),
        "README.md": "Read me.",
        "plays/x.py": "",
    }
    install(tmp_path, "plays", files)
    install(tmp_path, "bare", {"bare/__init__.py": ""})
    monkeypatch.syspath_prepend(str(tmp_path))
    assert files["plays/a/c.md"].startswith(sample("pip:plays").prompt)
    assert files["plays/z/b.md"].startswith(sample("pip:plays", 1).prompt)
    assert sample("pip:plays").meta["data"]["rows"] == 2, "neither the package's description nor what lies beside it"
    assert "pip:bare holds no data for ppl" in refused("pip:bare").message
    missing = refused("pip:surely-not-installed")
    assert isinstance(missing, PrerequisiteError)
    assert "not installed" in missing.message and "pip install --no-deps surely-not-installed" in str(missing.hint)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"", "empty text"),
        ("x.txt", b"  \n", "empty text"),
        ("x.txt", b"caf\xe9 " * 400, "not UTF-8"),
        ("x.txt", b"word " * 20, "has only"),
        ("x.txt", b"x" * 9000, "has only|no two words"),
        ("x.pdf", b"%PDF", "files of the kind '.pdf' are not read"),
        ("x.jsonl", b'{"title": "no text"}\n', "lacks 'text'"),
        ("x.jsonl", b'{"text": 7}\n', "must be a text"),
        ("folder/x.pdf", b"%PDF", "holds no data for ppl"),
    ],
)
def test_bad_input_is_one_clear_error(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    found = refused(path.parent if "/" in name else path).message
    assert any(part in found for part in message.split("|")), found


def test_a_path_that_is_not_there() -> None:
    assert "no file or folder 'nowhere'" in refused("nowhere").message
