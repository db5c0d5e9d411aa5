"""RULER's tasks: wording as published, counts that are known, and the score."""

import itertools
import re
from collections import Counter

import pytest
from suite import sample_of

from questbench.errors import UsageError
from questbench.tasks._make import make_task
from questbench.tasks._metrics_ruler import string_match_all
from questbench.tasks._words import WORDS

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


def test_one_needle_is_asked_for_in_the_singular():
    sample = sample_of("niah_single_1")
    key, value = sample.meta["query"], sample.answers[0]
    assert sample.context.startswith(
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about "
        f"the number afterwards.\n{NOISE}\n"
    )
    assert f"\nOne of the special magic numbers for {key} is: {value}.\n" in sample.context
    assert sample.question + sample.answer_prefix == (
        f"\nWhat is the special magic number for {key} mentioned in the provided text? The special magic number for "
        f"{key} mentioned in the provided text is"
    )


def test_several_needles_are_asked_for_in_the_plural():
    sample = sample_of("niah_multiquery@prose")
    assert sample.context.startswith("Some special magic numbers are hidden within the following text.")
    query = sample.meta["query"]
    assert re.fullmatch(r"[a-z]+-[a-z]+, [a-z]+-[a-z]+, [a-z]+-[a-z]+, and [a-z]+-[a-z]+", query)
    assert sample.question + sample.answer_prefix == (
        f"\nWhat are all the special magic numbers for {query} mentioned in the provided text? The special magic "
        f"numbers for {query} mentioned in the provided text are"
    )


@pytest.mark.parametrize(
    ("spec", "needles", "keys", "value"),
    [
        ("niah_single_1", 1, 1, r"\d{7}"),
        ("niah_single_2@prose", 1, 1, r"\d{7}"),
        ("niah_single_3@prose", 1, 1, r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
        ("niah_multikey_1@prose", 4, 4, r"\d{7}"),
        ("niah_multivalue@prose", 4, 1, r"\d{7}"),
        ("niah_multiquery@prose", 4, 4, r"\d{7}"),
    ],
)
def test_as_many_needles_as_published(spec, needles, keys, value):
    sample = sample_of(spec)
    found = re.findall(r"One of the special magic (?:number|uuid)s for (\S+) is: (\S+)\.", sample.context)
    assert (len(found), len({key for key, _ in found}), len({text for _, text in found})) == (needles, keys, needles)
    assert all(re.fullmatch(value, text) for _, text in found)


@pytest.mark.parametrize("spec", ["niah_multikey_2", "niah_multikey_3"])
def test_needles_alone_fill_the_text(spec):
    sample = sample_of(spec, 0, 8192)
    lines = sample.context.splitlines()[1:]
    needles = [line for line in lines if line.startswith("One of the special magic ")]
    assert len(needles) == sample.meta["distractors"] + 1 > 200
    assert len(lines) - len(needles) <= 3, "noise takes up less than one needle"
    keys, values = ([line.rstrip(".").split()[at] for line in needles] for at in (7, 9))
    assert len({*keys, *values}) == 2 * len(needles)


def test_vt_reads_as_published():
    sample = sample_of("vt")
    value, names = sample.meta["value"], sample.meta["references"]
    assert len(names) == 5 and all(re.fullmatch("[A-Z]{5}", name) for name in names)
    assert sample.question + sample.answer_prefix == (
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: According to "
        f"the chain(s) of variable assignment in the text above, 5 variables are assigned the value {value}, they are:"
    )
    opening = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    shown, text = sample.context.split(opening)[1:]
    assert re.search(r"they are: [A-Z]{3}( [A-Z]{3}){4}\n\n$", shown), "the example ends with its answer"
    lines = [line for line in text.splitlines() if line.startswith("VAR")]
    assert lines == [f"VAR {names[0]} = {value}"] + [
        f"VAR {name} = VAR {before}" for before, name in itertools.pairwise(names)
    ]
    assert set(text.splitlines()) - set(lines) - {NOISE} <= {text.splitlines()[-1]}


def test_vt_chains_are_apart():
    sample = sample_of("vt:chains=4:hops=2:example=false")
    lines = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", sample.context)
    holder = dict(lines)
    assert len(lines) == len(holder) == 12

    def value(name):
        return name if name.isdigit() else value(holder[name])

    values = {name: value(name) for name in holder}
    assert Counter(values.values()) == dict.fromkeys(values.values(), 3)
    asked = str(sample.meta["value"])
    assert {name for name, held in values.items() if held == asked} == set(sample.meta["references"])


@pytest.mark.parametrize(("length", "often", "rarely"), [(2048, 6, 1), (8192, 30, 3)])
def test_cwe_counts(length, often, rarely):
    sample = sample_of("cwe", 0, length)
    shown, _, text = sample.context.rpartition("appear most often.\n")
    entries = [entry.split(". ") for entry in re.findall(r"\d+\. \w+", text)]
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    assert len(entries) == sample.meta["entries"]
    count = Counter(word for _, word in entries)
    common = sample.meta["references"]
    assert len(common) == 10 and all(count.pop(word) == often for word in common)
    assert set(count.values()) - {rarely} <= set(range(1, rarely)), "only the last word of the list may be incomplete"
    assert sum(number != rarely for number in count.values()) <= 1
    assert sample.meta["pseudo_words"] == 0 or set(WORDS) >= set(common)
    solved = Counter(word for _, word in re.findall(r"(\d+)\. ([a-z]+)", shown.partition("Question")[0]))
    assert sorted(solved.values()) == [1] * 10 + [3] * 10 if often == 6 else [3] * 30 + [10] * 10
    assert f"are: {sample.answers[0].split()[0]} " in shown
    assert not set(solved) & {*common, *count}


def test_cwe_places_its_words_anew_in_every_sample():
    def ranks(index):
        sample = sample_of("cwe", index)
        words = sample.context.rpartition("appear most often.\n")[2].split()[1::2]
        return {at for at, word in enumerate(words) if word in sample.meta["references"]}

    one, other = ranks(0), ranks(1)
    assert len(one & other) < len(one) / 2


def test_fwe_counts():
    sample = sample_of("fwe", 0, 8192)
    text = sample.context.partition("coded words. ")[2].split()
    count = Counter(text)
    ranked = count.most_common(5)
    assert ranked[0][0] == "..."
    assert [word for word, _ in ranked[1:4]] == sample.meta["references"]
    assert [number for _, number in ranked] == sample.meta["counts"]
    assert ranked[1][1] / ranked[2][1] == pytest.approx(9 / 4, rel=0.02), "shares are 1/k^2"
    assert all(re.fullmatch("[a-z]{6}", word) for word in count if word != "...")


def test_fwe_refuses_a_tie():
    with pytest.raises(UsageError, match="equally frequent") as error:
        sample_of("fwe:alpha=1.1", 0, 136)
    assert "--seq-len 272" in error.value.hint


def test_score_is_the_share_of_references_found():
    references = ["ABCDE", "FGHIJ", "KLMNO", "PQRST"]
    assert string_match_all("abcde, fghij KLMNO\x00PQRST", references) == 1
    assert string_match_all("ABCDE KLMN", references) == 0.25
    assert string_match_all("ABCDEF", references) == 0.25, "a substring counts, as upstream"
    assert string_match_all("ABC\x00DE", ["ABCDE"]) == 0
    task, sample = make_task("vt"), sample_of("vt")
    names = sample.meta["references"]
    assert [task.score(sample, " ".join(names[:count])) for count in range(6)] == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8, 1]
    )
