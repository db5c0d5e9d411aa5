"""Every generated task: length, determinism, needles, scores and refusals, in the tokens of different tokenizers."""

import importlib
import itertools
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite import NEEDLE_SPECS, SPECS, TOKENIZERS, fresh, sample_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from questbench import registry, seeding
from questbench.errors import QuestbenchError, UsageError
from questbench.tasks._base import StreamTask, Task
from questbench.tasks._haystack import check_expressible, garbage_lines, insert
from questbench.tasks._make import make_task

SCORED = [spec for spec in SPECS if not isinstance(make_task(spec), StreamTask)]
WORDY = {"vt", "chain", "multiturn", "cwe", "docqa:passages=3"}
"""Specs whose shortest prompt has more than 1,024 bytes."""


def test_every_task_of_the_folder_is_listed_here():
    from_data = {name for name in registry.names("questbench.tasks") if needs_data(name)}
    tested = {spec.partition(":")[0] for spec in SPECS} | {"passkey", "kv"}
    assert set(registry.names("questbench.tasks")) - from_data == tested


def needs_data(name):
    """Whether a task cannot make a sample from nothing."""
    try:
        fresh(name, length=make_task(name).default_length)
    except QuestbenchError:
        return True
    return False


@pytest.mark.parametrize("length", [1024, 4096, 16384])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("spec", SPECS)
def test_length_is_reached_and_never_exceeded(spec, tokenizer, length):
    if tokenizer == "characters" and length == 1024 and spec in WORDY:
        with pytest.raises(UsageError, match="or more") as error:
            sample_of(spec, 3, length, tokenizer)
        length = int(error.value.hint.split()[2])
        assert 1024 < length < 2048
    sample = sample_of(spec, 3, length, tokenizer)
    reached = len(TOKENIZERS[tokenizer].encode(sample.prompt))
    assert 0.95 * length <= reached <= length
    assert sample.meta["tokens"] == reached
    assert sample.question[0] in " \n" and not sample.prompt.endswith(" ")


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=8, deadline=None)
@given(index=st.integers(0, 10_000), length=st.integers(1200, 6000))
def test_any_index_and_length_fit(spec, index, length):
    sample = fresh(spec, index, length)
    reached = len(TOKENIZERS["lumps"].encode(sample.prompt))
    assert 0.95 * length <= sample.meta["tokens"] == reached <= length


@pytest.mark.parametrize("spec", SPECS)
def test_constructed_tokenizer_writes_every_text(spec):
    tokenizer, sample = TOKENIZERS["constructed"], sample_of(spec, 3, 4096, "constructed")
    text = sample.prompt
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    ids = tokenizer.encode(" " + sample.answers[0], add_special_tokens=False)
    assert tokenizer.decode(ids) == " " + sample.answers[0]


@pytest.mark.parametrize("spec", SPECS)
def test_same_arguments_same_sample(spec):
    random.seed(1)
    one = fresh(spec, 7)
    random.seed(2)
    assert fresh(spec, 7) == one
    others = [sample_of(spec, 8), sample_of(spec, 7, seed=1)]
    assert all(other.context != one.context for other in others)
    assert len({one.id, *(other.id for other in others)}) == 2, "the id names the index, not the seed"


@pytest.mark.parametrize("spec", SCORED)
def test_gold_completion_scores_one_and_nothing_scores_zero(spec):
    task, sample = make_task(spec), sample_of(spec)
    gold = sample.answers[0]
    for completion in (gold, f" {gold}", f" {gold}\n"):
        assert task.score(sample, completion) == 1.0
    for completion in ("", "\n", " I do not know.", "-"):
        assert task.score(sample, completion) == 0.0


@pytest.mark.parametrize("spec", SCORED)
def test_answer_of_another_sample_is_wrong(spec):
    task = make_task(spec)
    other = sample_of(spec, 1).answers[0]
    assert task.score(sample_of(spec), other) < 1.0
    assert not task.binary or task.score(sample_of(spec), other) == 0.0


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("spec", SCORED)
def test_gold_completion_fits_into_the_new_tokens(spec, tokenizer):
    task, sample = make_task(spec), sample_of(spec, 3, 4096, tokenizer)
    needed = len(TOKENIZERS[tokenizer].encode(" " + sample.answers[0], add_special_tokens=False))
    assert needed <= (sample.max_new_tokens or task.max_new_tokens)
    assert not any(mark in sample.answers[0] for mark in task.stop)


@pytest.mark.parametrize("spec", NEEDLE_SPECS)
def test_needles_hold_the_answer_and_stand_once(spec):
    sample = sample_of(spec, 5)
    needles = [sample.context[start:end] for start, end in sample.needles]
    parts = sample.meta.get("references") or sample.answers[0].split(" -> ")
    assert len(needles) == len(parts) == len(set(needles))
    assert sample.needles_needed == ("any" if len(parts) == 1 else "all")
    for needle, part in zip(needles, parts, strict=True):
        assert part in needle
        assert needle[0] != " " and needle[-1] not in " \n"
        assert sample.context.count(needle) == 1


@pytest.mark.parametrize("spec", NEEDLE_SPECS)
def test_no_two_samples_share_a_needle(spec):
    samples = [sample_of(spec, index, 1024) for index in range(12)]
    needles = [{sample.context[start:end] for start, end in sample.needles} for sample in samples]
    assert not any(one & other for one, other in itertools.combinations(needles, 2))
    for sample, other in itertools.permutations(samples, 2):
        assert not any(sample.context[start:end] in other.context for start, end in sample.needles)


@pytest.mark.parametrize("spec", SPECS)
def test_meta_can_be_stored(spec):
    import json

    sample = sample_of(spec)
    assert json.loads(json.dumps(dict(sample.meta))) == dict(sample.meta)


@pytest.mark.parametrize(
    "spec",
    [
        "niah:depths=1",
        "niah:depth=1.5",
        "niah:depth=middle",
        "niah:haystack=essay",
        "passkey:wording=rhyme",
        "vt:chains=0",
        "vt:hops=0",
        "vt:hops=33",
        "chain:steps=65",
        "chain:steps=0",
        "chain:links=1:steps=1",
        "fwe:alpha=1.0",
        "ppl:share=0",
        "ppl:share=1",
        "ppl:share=nan",
        "multiturn:turns=0",
        "multiturn:turns=65",
        "docqa:passages=0",
        "docqa:passages=some",
        "niah_single_1:keys=2",
        "cwe:words=5",
    ],
)
def test_impossible_parameters_are_refused(spec):
    with pytest.raises(UsageError) as error:
        make_task(spec)
    assert error.value.hint


def test_essay_tasks_are_known_by_their_mark_only():
    with pytest.raises(UsageError, match="texts of our own only") as error:
        make_task("niah_single_2")
    assert "niah_single_2@prose" in error.value.hint


@pytest.mark.parametrize("spec", [*SPECS, "kv", "passkey"])
def test_tokenizer_without_words_for_the_answer_is_refused(spec):
    words = sorted({word for each in SPECS for word in sample_of(each).question.split()})
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *(w for w in words if not w[0].isdigit())])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    task = make_task(spec)
    rng = seeding.generator(0, spec, 2048, 0)
    if isinstance(task, StreamTask):
        # Nothing is answered: unknown words are tokens like any other.
        assert task.sample(0, length=2048, tokenizer=tokenizer, rng=rng).meta["tokens"] <= 2048
        return
    with pytest.raises(UsageError, match="cannot be answered with this tokenizer") as error:
        task.sample(0, length=2048, tokenizer=tokenizer, rng=rng)
    assert "byte-level BPE" in error.value.hint


def test_tokenizer_with_words_for_the_answer_is_accepted():
    check_expressible("task", TOKENIZERS["constructed"], "4711 Mühlen")
    check_expressible("task", TOKENIZERS["characters"], "4711")


@pytest.mark.parametrize("depths", [2, 5, 11])
def test_niah_fills_its_grid_evenly(depths):
    samples = [sample_of(f"niah:depths={depths}", index, 1024) for index in range(2 * depths)]
    places = [sample.meta["depth"] for sample in samples]
    assert sorted(places) == sorted([step / (depths - 1) for step in range(depths)] * 2)
    for sample, place in zip(samples, places, strict=True):
        start, end = sample.needles[0]
        head = sample.context.index("\n") + 1
        assert (start - head) / (len(sample.context) - head - (end - start)) == pytest.approx(place, abs=0.05)
        if place in (0, 1):
            assert start == head if place == 0 else end == len(sample.context)


def test_niah_at_one_depth_stays_there():
    assert {sample_of("niah:depth=0.25", index, 1024).meta["depth"] for index in range(5)} == {0.25}


def test_insert_gives_the_span_of_every_piece():
    pieces = [(0.5, "half"), (0.0, "first"), (1.0, "last"), (0.5, "half too")]
    text, spans = insert(["a b.", "c.", "d e f.", "g."], pieces, " ")
    assert text == "first a b. c. half half too d e f. g. last"
    assert [text[start:end] for start, end in spans] == [piece for _, piece in pieces]
    assert insert([], [(0.3, "only")], "\n") == ("only", [(0, 4)])


def test_garbage_lines_hold_as_many_words_as_asked():
    for words in (0, 1, 19, 20, 21, 100):
        lines = garbage_lines(words)
        assert sum(len(line.split()) for line in lines) == words
        assert len(set(lines[:-1])) <= 1


def test_turns_are_samples_of_their_own():
    task, sample = make_task("multiturn"), sample_of("multiturn")
    assert len(sample.turns) == 8
    assert (sample.question, sample.answers, sample.needles) == (
        sample.turns[0].question,
        sample.turns[0].answers,
        sample.turns[0].needles,
    )
    for at, turn in enumerate(sample.turns):
        (span,) = turn.needles
        assert turn.answers[0] in sample.context[slice(*span)]
        assert sample.context[slice(*span)].split()[1].rstrip(":") in turn.question
        scores = [task.score_turn(sample, at, other.answers[0]) for other in sample.turns]
        assert scores == [float(other == turn) for other in sample.turns]


def test_turns_spread_over_the_text():
    for index in range(6):
        depths = sorted(sample_of("multiturn", index).meta["depths"])
        gaps = [later - earlier for earlier, later in itertools.pairwise(depths)]
        assert all(gap == pytest.approx(1 / 8, abs=1 / 64 + 1e-6) for gap in gaps)


def test_stream_task_has_no_completion():
    task, sample = make_task("ppl"), sample_of("ppl")
    assert task.protocols == ("stream",)
    with pytest.raises(UsageError) as error:
        task.score(sample, "text")
    assert "--protocol stream" in error.value.hint
    assert all("stream" not in make_task(spec).protocols for spec in SCORED)


def test_tasks_do_not_import_torch():
    code = (
        "import sys, importlib\nfrom questbench import registry\n"
        "for name in registry.names('questbench.tasks'): importlib.import_module('questbench.tasks.' + name)\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_task_file_has_one_task():
    for name in registry.names("questbench.tasks"):
        module = importlib.import_module(f"questbench.tasks.{name}")
        assert make_task(name).name == name == module.__name__.rpartition(".")[2]
        assert isinstance(make_task(name), Task)
