"""RULER's files in both schemas, and its question answering over SQuAD and HotpotQA, on self-made rows."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_helpers import (
    hotpot,
    hotpot_flat,
    json_array,
    jsonl,
    parquet,
    ruler_copy_row,
    ruler_row,
    squad,
    squad_flat,
)

from questbench import seeding
from questbench.errors import PrerequisiteError, UsageError
from questbench.models.constructed.tokenizer import build_tokenizer
from questbench.tasks._make import expand, make_task

TOKENIZER = build_tokenizer()
SET = "ruler:set=niah_multivalue"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path / "cache"))


def make(data: Path, spec: str) -> Any:
    return make_task(spec, {"*": str(data)})


def sample(task: Any, index: int = 0, length: int = 1024, seed: int = 0) -> Any:
    rng = seeding.generator(seed, task.label, length, index)
    return task.sample(index, length=length, tokenizer=TOKENIZER, rng=rng)


# ---- RULER's own files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        "niah_multivalue.jsonl",
        "niah_multivalue/validation.jsonl",
        "1024/data/niah_multivalue/validation.jsonl",
        "synthetic/1024/data/niah_multivalue/validation.jsonl",
    ],
)
def test_rulers_folders(place: str, tmp_path: Path) -> None:
    jsonl(tmp_path / place, [ruler_row(index) for index in range(2)])
    assert make(tmp_path, SET).samples(None, 1024) == 2


def test_length_picks_the_folder(tmp_path: Path) -> None:
    for length, count in ((1024, 1), (2048, 2)):
        rows = [ruler_row(index) for index in range(count)]
        jsonl(tmp_path / str(length) / "data" / "niah_multivalue" / "validation.jsonl", rows)
    task = make(tmp_path, SET)
    assert (task.samples(None, 1024), task.samples(None, 2048)) == (1, 2)
    with pytest.raises(PrerequisiteError, match="holds no data"):
        task.samples(None, 4096)


@pytest.mark.parametrize("schema", ["own", "copy"])
def test_prompt_is_rulers(schema: str, tmp_path: Path) -> None:
    own, copy = ruler_row(1), ruler_copy_row(1)
    path = tmp_path / "x.jsonl"
    jsonl(path, [ruler_row(0), own] if schema == "own" else [ruler_copy_row(0), copy])
    task = make(path, SET)
    got = sample(task, 1)
    assert got.prompt == own["input"] + own["answer_prefix"]
    assert got.question.startswith("\nWhat are all the special magic numbers for harbour")
    assert got.question.endswith("mentioned in the provided text?")
    assert got.answer_prefix == own["answer_prefix"]
    assert got.meta["references"] == own["outputs"]
    assert [got.context[start:end] for start, end in got.needles] == own["outputs"] and got.needles_needed == "all"
    assert got.meta["tokens"] == len(TOKENIZER.encode(got.prompt))
    assert task.score(got, got.answers[0]) == 1.0
    assert task.score(got, f" {own['outputs'][1]}.") == 0.5


def test_rows_of_a_folder_per_length_that_end_with_the_beginning_of_the_answer(tmp_path: Path) -> None:
    """Older generators' rows, as comparison suites publish them: FOLDER/LENGTH/SET.jsonl, answers that are UUIDs."""
    rng = random.Random(0)
    pairs = [(str(uuid.UUID(int=rng.getrandbits(128))), str(uuid.UUID(int=rng.getrandbits(128)))) for _ in range(30)]
    key, value = pairs[11]
    lines = [f"One of the special magic uuids for {one} is: {other}." for one, other in pairs]
    prompt = (
        "A special magic uuid is hidden within the following text. Make sure to memorize it. I will quiz you about the "
        "uuid afterwards.\n"
        + "\n".join(lines)
        + f"\nWhat is the special magic uuid for {key} mentioned in the provided "
        f"text? The special magic uuid for {key} mentioned in the provided text is"
    )
    row = {"index": 0, "input": prompt, "outputs": [value], "length": 900}
    length = len(TOKENIZER.encode(prompt))
    jsonl(tmp_path / str(length) / "niah_multikey_3.jsonl", [row])
    task = make(tmp_path, "ruler:set=niah_multikey_3")
    got = sample(task, 0, length)
    assert got.prompt == prompt and got.answer_prefix.strip().startswith("The special magic uuid for")
    assert [got.context[start:end] for start, end in got.needles] == [value]
    assert task.score(got, f" {value.upper()}.") == 1.0 and task.score(got, f" {pairs[12][1]}.") == 0.0


def test_answer_prefix_is_not_put_twice(tmp_path: Path) -> None:
    row = ruler_row(0)
    old = {"index": 0, "input": row["input"] + row["answer_prefix"], "outputs": row["outputs"]}
    both = {**old, "answer_prefix": row["answer_prefix"]}
    for variant in (old, both):
        got = sample(make(jsonl(tmp_path / "x.jsonl", [variant]), SET))
        assert got.prompt == row["input"] + row["answer_prefix"]
        (tmp_path / "x.jsonl").unlink()


def test_copy_of_the_hub_is_filtered_by_set(tmp_path: Path) -> None:
    rows = [
        ruler_copy_row(index, name) for index, name in enumerate(["vt", "niah_multivalue", "cwe", "niah_multivalue"])
    ]
    parquet(tmp_path / "1024" / "test-00000-of-00001.parquet", rows)
    task = make(tmp_path, SET)
    assert task.samples(None, 1024) == 2
    assert sample(task, 1).meta["references"] == ruler_copy_row(3)["answer"]
    with pytest.raises(PrerequisiteError, match="4 rows, none of them for ruler:set=fwe"):
        make(tmp_path, "ruler:set=fwe").samples(None, 1024)


QUESTIONS = {
    "niah_single_1": "The grass is green. The sky is blue.\n{text}\n"
    "What is the special magic number for stone mentioned?",
    "vt": "Memorize.\n\n{text}\nQuestion: Find all variables that are assigned the value 1 in the text above. Answer: "
    "X\n\n\nMemorize.\n\n{text}\nQuestion: Find all variables that are assigned the value 12345 in the text above.",
    "cwe": "Below is a list.\n{text}\nQuestion: What are the 10 most common words in the above list? Answer: a\n{text}"
    "\nQuestion: What are the 10 most common words in the above list?",
    "fwe": "Read the following coded text. {text}\nQuestion: Do not provide any explanation. Please ignore the dots.",
    "qa_1": "Answer the question based on the given documents. Only give me the answer.\n\n{text}\n\nAnswer the "
    "question based on the given documents. Only give me the answer.\n\nQuestion: Who?",
}
NEW_TOKENS = {"niah_single_1": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32}


@pytest.mark.parametrize("name", QUESTIONS)
def test_question_is_the_last_one(name: str, tmp_path: Path) -> None:
    prompt = QUESTIONS[name].replace("{text}", "stone river " * 60)
    path = jsonl(tmp_path / "x.jsonl", [{"input": prompt, "outputs": ["7", "8"], "answer_prefix": " Answer:"}])
    task = make(path, f"ruler:set={name}")
    got = sample(task, length=256)
    assert got.prompt == prompt + " Answer:"
    assert got.context.endswith("river")
    assert task.max_new_tokens == NEW_TOKENS[name]
    assert task.score(got, "it is 8") == (1.0 if name == "qa_1" else 0.5)
    assert task.binary == (name in ("niah_single_1", "qa_1"))


def test_row_of_another_set_has_no_question(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [ruler_row(0)])
    with pytest.raises(PrerequisiteError, match="line 1: 'input' has no question of ruler:set=cwe"):
        sample(make(path, "ruler:set=cwe"))


@pytest.mark.parametrize("length", [512, 8192])
def test_prompts_of_another_length_are_refused(length: int, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [ruler_row(0)])
    with pytest.raises(UsageError, match="tokens with this tokenizer, not about"):
        sample(make(path, SET), length=length)


# ---- SQuAD and HotpotQA -------------------------------------------------------------------------------------------

WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "squad": ("squad", lambda folder: dump(folder / "dev-v2.0.json", squad())),
    "squad of the hub": ("squad", lambda folder: parquet(folder / "squad_v2" / "validation-0.parquet", squad_flat())),
    "hotpotqa": ("hotpotqa", lambda folder: json_array(folder / "hotpot_dev_distractor_v1.json", hotpot())),
    "hotpotqa of the hub": (
        "hotpotqa",
        lambda folder: parquet(folder / "distractor" / "validation-0.parquet", hotpot_flat()),
    ),
}


def dump(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, Path]:
    name, write = WRITERS[request.param]
    write(tmp_path)
    return name, tmp_path


@pytest.mark.parametrize("folder", WRITERS, indirect=True)
def test_documents_fill_the_length(folder: tuple[str, Path]) -> None:
    name, path = folder
    task = make(path, f"ruler_qa:set={name}")
    counts = []
    for length in (600, 1200):
        got = sample(task, 1, length)
        reached = len(TOKENIZER.encode(got.prompt))
        assert got.meta["tokens"] == reached <= length
        assert reached > length - 250, "no other document fits"
        counts.append(got.meta["documents"])
        assert got.context.count("Document ") == got.meta["documents"]
        assert [f"Document {number + 1}:\n" in got.context for number in range(got.meta["documents"])]
    assert counts[0] < counts[1]


@pytest.mark.parametrize("folder", WRITERS, indirect=True)
def test_evidence_stands_where_it_is_said_to(folder: tuple[str, Path]) -> None:
    name, path = folder
    task = make(path, f"ruler_qa:set={name}")
    got = sample(task, 2, 1200)
    texts = [got.context[start:end] for start, end in got.needles]
    if name == "squad":
        assert len(texts) == 1 and texts[0].startswith("The keeper of gate 0-2 is called Orla02.")
        assert got.answers == ("Orla02", "the keeper")
    else:
        assert [text.split("\n")[0] for text in texts] == ["A2", "B2"]
        assert got.answers == ("A2",)
    for text, number in zip(texts, got.meta["evidence"], strict=True):
        assert f"Document {number}:\n{text}" in got.context
    assert got.question.endswith("?") and got.answer_prefix == " Answer:"
    assert task.score(got, f"I think it is {got.answers[0].upper()}.") == 1.0
    assert task.score(got, "no idea") == 0.0


@pytest.mark.parametrize("folder", WRITERS, indirect=True)
def test_same_arguments_same_sample(folder: tuple[str, Path]) -> None:
    name, path = folder
    task = make(path, f"ruler_qa:set={name}")
    random.seed(1)
    one = sample(task, 1, 800)
    random.seed(2)
    assert sample(task, 1, 800) == one
    assert sample(task, 1, 800, seed=1).context != one.context
    assert sample(task, 1, 800, seed=1).question == one.question


def test_both_forms_have_the_same_questions(tmp_path: Path) -> None:
    for name in ("squad", "hotpotqa"):
        first = make(WRITERS[name][1](tmp_path), f"ruler_qa:set={name}").table(1024)
        second = make(WRITERS[f"{name} of the hub"][1](tmp_path), f"ruler_qa:set={name}").table(1024)
        assert [first[index] for index in range(len(first))] == [second[index] for index in range(len(second))]


def test_paragraphs_of_the_article_come_first(tmp_path: Path) -> None:
    task = make(dump(tmp_path / "dev-v2.0.json", squad()), "ruler_qa:set=squad")
    got = sample(task, 7, 700)
    gates = {line.split()[4] for line in got.context.splitlines() if line.startswith("The keeper")}
    assert 2 <= len(gates) <= 5 and {gate.split("-")[0] for gate in gates} == {"1"}


def test_only_questions_with_an_answer(tmp_path: Path) -> None:
    task = make(dump(tmp_path / "dev-v2.0.json", squad()), "ruler_qa:set=squad")
    assert task.samples(None, 1024) == 20
    assert all("gate 99" not in task.row(index, 1024)[0]["question"] for index in range(20))


def test_all_documents_at_most_once(tmp_path: Path) -> None:
    task = make(json_array(tmp_path / "hotpotqa.json", hotpot()), "ruler_qa:set=hotpotqa")
    got = sample(task, 0, 100_000)
    assert got.meta["documents"] == got.meta["of_documents"] == 25
    assert len({got.context.count(f"\nA{index} is a town") for index in range(5)}) == 1


def test_documents_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    task = make(json_array(tmp_path / "hotpotqa.json", hotpot()), "ruler_qa:set=hotpotqa")
    with pytest.raises(UsageError, match="the documents of question 0 alone have") as error:
        sample(task, 0, 100)
    least = int(str(error.value.hint).split()[2])
    assert sample(task, 0, least).meta["documents"] == 5


def test_known_files_are_told_from_others(tmp_path: Path) -> None:
    task = make(dump(tmp_path / "dev-v2.0.json", squad()), "ruler_qa:set=squad")
    assert sample(task).meta["data"]["upstream"] == "not the known file"
    assert all(len(digest) == 64 for digest in task.known)


def broken_squad(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    value = squad()
    change(value["data"][1]["paragraphs"][2])
    return value


BROKEN: dict[str, tuple[Any, str]] = {
    "no data": ({"version": "v2.0"}, "line 1 lacks 'data'"),
    "empty": ({"data": []}, "no question with an answer"),
    "no context": (broken_squad(lambda p: p.pop("context")), "data[1].paragraphs[2] lacks 'context'"),
    "qas": (broken_squad(lambda p: p.update(qas="none")), "data[1].paragraphs[2]: 'qas' is a text"),
    "question": (broken_squad(lambda p: p["qas"][1].pop("question")), "paragraphs[2].qas[1] lacks 'question'"),
    "answers": (broken_squad(lambda p: p["qas"][1].update(answers=[3])), "qas[1].answers[0] is a number"),
}


@pytest.mark.parametrize(("value", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_squad(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError) as error:
        make(dump(tmp_path / "dev-v2.0.json", value), "ruler_qa:set=squad").table(1024)
    assert message in error.value.message and "dev-v2.0.json" in error.value.message


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ([], "'context' is an empty list"),
        ([["Title only"]], "context[0] is a list, but must be a title and a list of sentences"),
        ([["Fine", ["a"]], "text"], "context[1] is a text"),
        ("text", "'context' is a text, but must be a list"),
    ],
)
def test_broken_hotpotqa(context: Any, message: str, tmp_path: Path) -> None:
    rows = hotpot()
    rows[3]["context"] = context
    with pytest.raises(PrerequisiteError) as error:
        make(json_array(tmp_path / "x.json", rows), "ruler_qa:set=hotpotqa").table(1024)
    assert message in error.value.message and "x.json, row 4" in error.value.message


def test_one_for_the_other_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match=r"lacks ('data'|'title')"):
        make(json_array(tmp_path / "x.json", hotpot()), "ruler_qa:set=squad").table(1024)
    assert expand(["ruler_qa:set=both"]) == ["ruler_qa:set=squad", "ruler_qa:set=hotpotqa"]
