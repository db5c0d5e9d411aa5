"""passkey and kv: lengths, needles, determinism, scores, in the tokens of different tokenizers."""

import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from questbench import seeding
from questbench.errors import UsageError
from questbench.models.constructed.tokenizer import build_tokenizer
from questbench.tasks._haystack import depth, fit
from questbench.tasks._make import make_task

SPECS = ("passkey", "passkey:wording=number", "kv", "kv:records=4", "kv:records=full")


class Characters:
    """One token per byte and no BOS."""

    def encode(self, text, *, add_special_tokens=True):
        del add_special_tokens
        return list(text.encode())


class Lumps:
    """About five characters per token, counted in whole words: steps of uneven size."""

    def encode(self, text, *, add_special_tokens=True):
        return [0] * add_special_tokens + [0 for word in text.split() for _ in range(-(-len(word) // 5))]


TOKENIZERS = {"constructed": build_tokenizer(), "characters": Characters(), "lumps": Lumps()}


def sample_of(spec, index=0, length=2048, tokenizer="constructed", seed=0):
    rng = seeding.generator(seed, spec, length, index)
    return make_task(spec).sample(index, length=length, tokenizer=TOKENIZERS[tokenizer], rng=rng)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@settings(max_examples=15, deadline=None)
@given(index=st.integers(0, 10_000), length=st.integers(1500, 9000))
def test_length_is_reached_and_never_exceeded(spec, tokenizer, index, length):
    sample = sample_of(spec, index, length, tokenizer)
    reached = len(TOKENIZERS[tokenizer].encode(sample.prompt))
    assert 0.95 * length <= reached <= length
    assert sample.meta["tokens"] == reached


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("index", range(6))
def test_needle_stands_once_and_where_it_is_said_to(spec, index):
    sample = sample_of(spec, index)
    ((start, end),) = sample.needles
    needle, key, gold = sample.context[start:end], str(sample.meta["key"]), sample.answers[0]
    assert key in needle and gold in needle
    outside = sample.context[:start] + sample.context[end:]
    assert key not in outside and gold not in outside
    assert sample.context.count(needle) == 1
    assert sample.question.startswith("\n") and not sample.prompt.endswith(" ")


def test_the_other_wording_of_the_pass_key_asks_for_a_number_and_changes_nothing_else():
    published, other = (
        sample_of("passkey"),
        make_task("passkey:wording=number").sample(
            0, length=2048, tokenizer=TOKENIZERS["constructed"], rng=seeding.generator(0, "passkey", 2048, 0)
        ),
    )
    assert published.question == "\nWhat is the pass key? " and "five-digit number" in other.question
    assert (other.answer_prefix, other.answers) == (published.answer_prefix, published.answers)


@pytest.mark.parametrize("spec", SPECS)
def test_needle_maps_to_tokens(spec):
    sample, tokenizer = sample_of(spec, 3), TOKENIZERS["constructed"]
    encoded = tokenizer(sample.prompt, return_offsets_mapping=True)
    (span,) = sample.needles
    inside = [
        token
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        if start >= span[0] and end <= span[1] and end > start
    ]
    assert tokenizer.decode(inside) == sample.context[slice(*span)]


@pytest.mark.parametrize("spec", SPECS)
def test_same_arguments_same_sample(spec):
    random.seed(1)
    one = sample_of(spec, 7)
    random.seed(2)
    assert sample_of(spec, 7) == one
    assert sample_of(spec, 8).answers != one.answers
    assert sample_of(spec, 7, seed=1).answers != one.answers


@pytest.mark.parametrize("spec", SPECS)
def test_gold_completion_scores_one(spec):
    task, sample = make_task(spec), sample_of(spec)
    gold = sample.answers[0]
    assert task.score(sample, gold) == task.score(sample, f" {gold}.\nkey 1") == 1.0
    wrong = ("", "no digits", f"1 {gold}", gold[:-1], gold + "0", str(int(gold) + 1))
    assert [task.score(sample, text) for text in wrong] == [0.0] * len(wrong)


@pytest.mark.parametrize("spec", ["passkey", "kv", "kv:records=64"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_too_short_a_length_names_the_shortest(spec, tokenizer):
    with pytest.raises(UsageError, match="or more") as error:
        sample_of(spec, length=30, tokenizer=tokenizer)
    shortest = int(error.value.message.split()[-3].replace(",", ""))
    assert sample_of(spec, length=shortest, tokenizer=tokenizer).meta["tokens"] <= shortest


def test_depths_are_even_in_every_prefix():
    for count in (10, 50, 100):
        places = sorted(depth(index) for index in range(count))
        assert all(abs(place - (rank + 0.5) / count) < 2 / count for rank, place in enumerate(places))


@pytest.mark.parametrize("spec", ["passkey", "kv"])
def test_needle_lies_at_its_depth(spec):
    for index in range(10):
        sample = sample_of(spec, index, 4096)
        assert sample.needles[0][0] / len(sample.context) == pytest.approx(sample.meta["depth"], abs=0.05)


def test_keys_and_values_of_kv_differ():
    context = sample_of("kv:records=full", length=8192).context
    records = [line.split() for line in context.splitlines() if line.startswith("key ")]
    keys, values = [key.rstrip(":") for _, key, _ in records], [value for *_, value in records]
    assert len(records) > 500
    assert len({*keys, *values}) == 2 * len(records)
    wildcards = [key[:place] + "?" + key[place + 1 :] for key in keys for place in range(6)]
    assert len(set(wildcards)) == len(wildcards), "two keys differ in one digit only"


def test_kv_holds_as_many_records_as_asked():
    assert sample_of("kv").context.count("\nkey ") == 64
    assert sample_of("kv:records=5").context.count("\nkey ") == 5
    full = sample_of("kv:records=full")
    assert full.context.count("\nkey ") == full.meta["records"] > 200


@pytest.mark.parametrize("setting", ["0", "some", "1000000"])
def test_kv_refuses_impossible_numbers(setting):
    with pytest.raises(UsageError):
        make_task(f"kv:records={setting}")


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.integers(-2, 6), min_size=1, max_size=40),
    length=st.integers(0, 150),
    start=st.integers(0, 20),
    most=st.sampled_from([None, 0, 1, 200]),
)
def test_fit_ends_and_fits_for_any_counting(steps, length, start, most):
    def count(units):
        return start + sum(steps[unit % len(steps)] for unit in range(units)) + units

    units = fit(count, length, most)
    assert most is None or units <= most
    assert units == -1 if count(0) > length else count(units) <= length


def test_tasks_do_not_import_torch():
    code = "import sys, questbench.tasks.kv, questbench.tasks.passkey; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
