"""The beginning of an answer that a prompt gives: apart from the question, in it without a chat template."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
from data_helpers import hotpot, json_array, jsonl, longbench_rows, ruler_copy_row, ruler_row
from suite import SPECS, TOKENIZERS, fresh

from questbench.experiments.accuracy.chat import Chat
from questbench.tasks._base import StreamTask
from questbench.tasks._make import make_task

ASKED = [spec for spec in (*SPECS, "passkey", "kv", "kv:records=full") if not isinstance(make_task(spec), StreamTask)]
CHAT = Chat("<user>", "</user><assistant>", "</assistant><user>")
PUBLISHED = Path(__file__).with_name("prompts.json")
"""Hashes of whole prompts without a template: a change of a task's wording moves results, and must be meant."""


@pytest.mark.parametrize("spec", ASKED)
def test_every_task_says_how_its_answer_begins(spec: str) -> None:
    sample = fresh(spec)
    assert sample.answer_prefix.strip() == sample.answer_prefix != ""
    assert sample.question[-1] in " \n", "what separates the two is left out in a template"
    assert all(turn.answer_prefix and turn.question[-1] == "\n" for turn in sample.turns)


@pytest.mark.parametrize("spec", ASKED)
def test_in_a_template_it_stands_behind_the_header_of_the_answer(spec: str) -> None:
    sample = fresh(spec)
    wrapped = CHAT.wrap(sample)
    assert wrapped.prompt.endswith("</user><assistant>" + sample.answer_prefix)
    asked = wrapped.prompt.removeprefix("<user>").partition("</user>")[0]
    assert asked == (sample.context + sample.question).rstrip()
    for turn, before in zip(wrapped.turns[1:], sample.turns[1:], strict=True):
        question = before.question.strip()
        assert turn.question == f"</assistant><user>{question}</user><assistant>{before.answer_prefix}"


@pytest.mark.parametrize("spec", ASKED)
def test_the_template_is_counted_as_it_is_put_around(spec: str) -> None:
    tokenizer = TOKENIZERS["constructed"]
    sample = fresh_in(spec, CHAT.tokenizer(tokenizer), 2048)
    wrapped = CHAT.wrap(sample)
    assert sample.meta["tokens"] == len(tokenizer.encode(wrapped.prompt, add_special_tokens=False)) <= 2048


def fresh_in(spec: str, tokenizer: object, length: int):
    return make_task(spec).sample(2, length=length, tokenizer=tokenizer, rng=random.Random(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", ASKED)
def test_prompts_without_a_template_are_the_published_ones(spec: str) -> None:
    prompts = [fresh(spec, 3, 2048, "constructed").prompt]
    prompts += [turn.question + turn.answer_prefix for turn in fresh(spec, 3, 2048, "constructed").turns]
    assert hashlib.sha256("\0".join(prompts).encode()).hexdigest()[:16] == json.loads(PUBLISHED.read_text())[spec]


@pytest.mark.parametrize("schema", ["own", "copy", "in the prompt", "twice"])
def test_rulers_rows_keep_theirs_apart(schema: str, tmp_path: Path) -> None:
    own = ruler_row(0)
    row = {
        "own": own,
        "copy": ruler_copy_row(0),
        "in the prompt": {"index": 0, "input": own["input"] + own["answer_prefix"], "outputs": own["outputs"]},
        "twice": {**own, "input": own["input"] + own["answer_prefix"]},
    }[schema]
    path = jsonl(tmp_path / "x.jsonl", [row])
    task = make_task("ruler:set=niah_multivalue", {"*": str(path)})
    got = task.sample(0, length=1024, tokenizer=TOKENIZERS["constructed"], rng=random.Random(0))
    # RULER's own files have a blank in front of it, also behind the header; the copy has it in the question.
    prefix = own["answer_prefix"]
    assert got.answer_prefix == prefix and got.prompt == own["input"] + own["answer_prefix"]
    assert CHAT.wrap(got).prompt == f"<user>{own['input']}</user><assistant>{prefix}"


def test_ruler_qa_keeps_its_own_apart(tmp_path: Path) -> None:
    task = make_task("ruler_qa:set=hotpotqa", {"*": str(json_array(tmp_path / "hotpotqa.json", hotpot()))})
    got = task.sample(0, length=4096, tokenizer=TOKENIZERS["constructed"], rng=random.Random(0))
    assert got.answer_prefix == " Answer:" and got.question.endswith("?")


def test_longbench_prompts_stay_whole_in_the_users_message(tmp_path: Path) -> None:
    """As in the benchmark's own code, which puts the whole prompt into the message."""
    path = jsonl(tmp_path / "qasper.jsonl", longbench_rows("qasper"))
    task = make_task("longbench:set=qasper", {"*": str(path)})
    got = task.sample(0, length=4096, tokenizer=TOKENIZERS["constructed"], rng=random.Random(0))
    assert got.answer_prefix == "" and CHAT.wrap(got).prompt == f"<user>{got.prompt}</user><assistant>"
