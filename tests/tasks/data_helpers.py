"""Self-made data in the formats of LongBench, RULER, SQuAD, HotpotQA and PG-19, and writers of each kind of file."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from questbench.tasks._longbench import SETS

Rows = Sequence[Mapping[str, Any]]
WORDS = "river stone market letter winter garden teacher bridge window harbour copper village music summer".split()
CLASSES = ["Person", "Place", "Number", "Number of people"]
ANSWERS = {
    "passage_retrieval_en": "Paragraph 7",
    "passage_retrieval_zh": "段落7",
    "passage_count": "12",
    "trec": "Number of people",
    "lsht": "Place",
}


def prose(words: int, seed: object = 0) -> str:
    """Words in sentences, the same for the same seed."""
    rng = random.Random(f"data {seed}")
    drawn = [rng.choice(WORDS) for _ in range(words)]
    return " ".join(word + "." * (place % 9 == 8) for place, word in enumerate(drawn))


def longbench_rows(name: str, count: int = 3, words: int = 400) -> list[dict[str, Any]]:
    """Rows of a set, with LongBench's columns."""
    answer = ANSWERS.get(name, "the copper bridge")
    return [
        {
            "input": f"Which bridge is number {index}?" if "{input}" in SETS[name].tail else "",
            "context": f"{prose(words, index)} The answer {index} is {answer}. {prose(words, -index - 1)}",
            "answers": [answer, "a second answer"],
            "length": 2000 + 3000 * index,
            "dataset": name,
            "language": "en",
            "all_classes": CLASSES if name in ("trec", "lsht") else None,
            "_id": f"{name}-row-{index}",
        }
        for index in range(count)
    ]


def jsonl(path: Path, rows: Rows) -> Path:
    """One row per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def json_array(path: Path, rows: Rows) -> Path:
    """One array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(rows)), encoding="utf-8")
    return path


def parquet(path: Path, rows: Rows) -> Path:
    """Parquet, written by the library that reads it."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    datasets.Dataset.from_list([dict(row) for row in rows]).to_parquet(str(path))
    return path


def zipped(path: Path, members: Mapping[str, str]) -> Path:
    """A compressed zip file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def lines(rows: Rows) -> str:
    """The text of a jsonl file."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def longbench_zip(path: Path, sets: Sequence[str], suffix: str = "") -> Path:
    """As upstream packs it."""
    return zipped(path, {f"data/{name}{suffix}.jsonl": lines(longbench_rows(name)) for name in sets})


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {
    "x.jsonl": jsonl,
    "x.json": json_array,
    "x.parquet": parquet,
}


def ruler_row(index: int, words: int = 220) -> dict[str, Any]:
    """A row of niah_multivalue as RULER's generator writes it."""
    values = [f"{7_000_001 + 1000 * index + step}" for step in range(2)]
    needles = [f"One of the special magic numbers for harbour is: {value}." for value in values]
    return {
        "index": index,
        "input": "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will "
        f"quiz you about the numbers afterwards.\n{prose(words, index)} {needles[0]} {prose(words, -1 - index)} "
        f"{needles[1]}\nWhat are all the special magic numbers for harbour mentioned in the provided text?",
        "outputs": values,
        "length": 1234,
        "length_w_model_temp": 1234,
        "answer_prefix": " The special magic numbers for harbour mentioned in the provided text are",
        "token_position_answer": 17,
    }


def ruler_copy_row(index: int, name: str = "niah_multivalue") -> dict[str, Any]:
    """The same as the hub's copy has it."""
    row = ruler_row(index)
    border = row["input"].rindex("What are all")
    return {
        "context": row["input"][:border],
        "question": row["input"][border:] + " ",
        "answer_prefix": row["answer_prefix"].strip(),
        "answer": row["outputs"],
        "task": name,
        "max_new_tokens": 128,
    }


def squad(articles: int = 4, paragraphs: int = 5, words: int = 60) -> dict[str, Any]:
    """dev-v2.0.json: every paragraph has a question with two answers and one that cannot be answered."""

    def paragraph(article: int, number: int) -> dict[str, Any]:
        fact = f"The keeper of gate {article}-{number} is called Orla{article}{number}."
        asked = {"id": f"{article}{number}", "question": f"Who keeps gate {article}-{number}?", "is_impossible": False}
        answers = [{"text": f"Orla{article}{number}", "answer_start": 0}, {"text": "the keeper", "answer_start": 4}]
        empty = {"id": f"x{article}{number}", "question": "Who keeps gate 99?", "is_impossible": True, "answers": []}
        text = f"{fact} {prose(words, (article, number))}"
        return {"context": text, "qas": [empty, asked | {"answers": answers}]}

    listed = [
        {"title": f"Gate_{article}", "paragraphs": [paragraph(article, number) for number in range(paragraphs)]}
        for article in range(articles)
    ]
    return {"version": "v2.0", "data": listed}


def squad_flat() -> list[dict[str, Any]]:
    """The same as the hub has it."""
    return [
        {
            "id": asked["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": asked["question"],
            "answers": {
                "text": [answer["text"] for answer in asked["answers"]],
                "answer_start": [answer["answer_start"] for answer in asked["answers"]],
            },
        }
        for article in squad()["data"]
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    ]


def hotpot(count: int = 5) -> list[dict[str, Any]]:
    """hotpot_dev_distractor_v1.json: two supporting paragraphs and three others a question."""
    return [
        {
            "_id": f"h{index}",
            "question": f"Which town is older, A{index} or B{index}?",
            "answer": f"A{index}",
            "type": "comparison",
            "level": "hard",
            "supporting_facts": [[f"A{index}", 0], [f"B{index}", 1]],
            "context": [
                [title, [f"{title} is a town of {1000 + 7 * index}.", " " + prose(25, (title, index))]]
                for title in (f"C{index}", f"A{index}", f"D{index}", f"B{index}", "Elsewhere")
            ],
        }
        for index in range(count)
    ]


def hotpot_flat() -> list[dict[str, Any]]:
    """The same as the hub has it."""
    return [
        {
            "id": row["_id"],
            "question": row["question"],
            "answer": row["answer"],
            "supporting_facts": {
                "title": [title for title, _ in row["supporting_facts"]],
                "sent_id": [number for _, number in row["supporting_facts"]],
            },
            "context": {
                "title": [title for title, _ in row["context"]],
                "sentences": [sentences for _, sentences in row["context"]],
            },
        }
        for row in hotpot()
    ]


def books(count: int = 2, words: int = 2500) -> list[dict[str, Any]]:
    """PG-19's columns."""
    return [
        {
            "short_book_title": f"Book {index}",
            "publication_date": 1900,
            "url": "",
            "text": prose(words, ("book", index)),
        }
        for index in range(count)
    ]
