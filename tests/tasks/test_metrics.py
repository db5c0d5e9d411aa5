"""Metrics against known answers of the packages and definitions that LongBench and RULER score with.

The values of ROUGE-L are those of the package rouge 1.0.1, those of code similarity of fuzzywuzzy 0.18.0 on difflib.
Where the packages are installed, random texts are compared too.
"""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from questbench.tasks import _metrics_text as text
from questbench.tasks._metrics_rouge import rouge_l
from questbench.tasks._metrics_ruler import clean, string_match_all, string_match_part

ROUGE = [
    ("the cat sat on the mat.", "the cat lay on the mat.", 0.799999995),
    (
        "The agency found three problems. It recommends two changes to the program.",
        "The agency recommends two changes. Three problems were found in the program.",
        0.666666662,
    ),
    ("no full stop here and none there", "there and here no stop", 0.333333328),
    ("One. One. One.", "One", 0.999999995),
    ("Costs rose by 3.5 percent in 2019.", "Costs rose by 3.5 percent.", 0.857142852),
    ("Same words, other order: b a", "a b", 0.249999996),
    ("   .  . x", "x . y", 0.499999995),
    (
        "budget review\n\nThe review covers the budget of 2020. It does not cover 2021.",
        "The review covers 2020 and the budget. It does not cover later years.",
        0.719999995,
    ),
    ("Case counts", "case counts", 0.499999995),
]
CODE = [
    ("return self.value", "return self._value", 0.97),
    ("for i in range(10):", "for j in range(n):", 0.86),
    ("x = 1", "y = 2", 0.60),
    ("", "a", 0.0),
    ("", "", 1.0),
    ("import os, sys", "import sys, os", 0.79),
    ("a" * 300 + "b", "b" + "a" * 300, 0.0),
    ("public int size() { return n; }", "public int getSize() { return size; }", 0.85),
]
PIECES = ["the", "a", "cat", "Cat", "sat", "on", ".", "..", ". ", "\n", "dog,", "", "  ", "B-52", "the."]


@pytest.mark.parametrize(("said", "meant", "value"), ROUGE)
def test_rouge_l_is_that_of_the_package(said: str, meant: str, value: float) -> None:
    assert rouge_l(said, meant) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("empty", ["", ".", "..."])
def test_rouge_l_of_nothing_is_zero(empty: str) -> None:
    assert rouge_l(empty, "a reference") == rouge_l("a prediction", empty) == 0.0


def test_rouge_l_of_a_sentence_that_the_package_cannot_read() -> None:
    # Upstream's recursion gives up on this and LongBench counts 0.
    words = " ".join(f"w{number}" for number in range(1500))
    assert rouge_l(words, words) == pytest.approx(1.0, abs=1e-7)


def test_rouge_l_equals_the_installed_package() -> None:
    package = pytest.importorskip("rouge")
    rng = random.Random(3)
    for _ in range(500):
        said, meant = (" ".join(rng.choices(PIECES, k=rng.randrange(25))) for _ in range(2))
        try:
            expected = package.Rouge().get_scores([said], [meant], avg=True)["rouge-l"]["f"]
        except ValueError:
            expected = 0.0
        assert rouge_l(said, meant) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=25), st.lists(st.sampled_from(PIECES), max_size=25))
def test_rouge_l_is_symmetric_only_in_its_bounds(said: list[str], meant: list[str]) -> None:
    value = rouge_l(" ".join(said), " ".join(meant))
    assert 0.0 <= value <= 1.0


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("The  Cat, sat!", "cat sat"),
        ("a-the", "athe"),  # punctuation goes first, so this is one word
        ("An (a) the", ""),
        ("“quoted”", "“quoted”"),  # ASCII punctuation only
        ("1,000 U.S. dollars", "1000 us dollars"),
        ("theatre of the absurd", "theatre of absurd"),
    ],
)
def test_normalisation(raw: str, expected: str) -> None:
    assert text.normalize_answer(raw) == expected


@pytest.mark.parametrize(
    ("said", "meant", "value"),
    [
        ("The Eiffel Tower", "Eiffel tower.", 1.0),
        ("in the Eiffel Tower in Paris", "Eiffel Tower", 4 / 7),  # P 2/5, R 1
        ("Paris Paris", "Paris", 2 / 3),  # bags: P 1/2, R 1
        ("unanswerable", "unanswerable", 1.0),
        ("yes", "no", 0.0),
        ("", "", 0.0),
        ("the", "a", 0.0),
    ],
)
def test_qa_f1(said: str, meant: str, value: float) -> None:
    assert text.qa_f1(said, meant) == pytest.approx(value)


CLASSES = ["Expression abbreviated", "Abbreviation", "Number", "Number of people", "Other number"]


@pytest.mark.parametrize(
    ("said", "meant", "classes", "value"),
    [
        ("Abbreviation", "Abbreviation", CLASSES, 1.0),
        ("Abbreviation or Number", "Abbreviation", CLASSES, 1 / 2),
        ("Number of people", "Number of people", CLASSES, 1.0),  # "Number" is a part of it
        ("Number of people", "Number", CLASSES, 1 / 2),
        ("abbreviation", "Abbreviation", CLASSES, 0.0),
        ("", "Number", CLASSES, 0.0),
        # Both "a" and "b" are parts of "ab"; taking "a" off hides "b" from the walk, so two names are left.
        ("ab", "ab", ["a", "b", "ab"], 1 / 2),
        ("abc", "abc", ["a", "b", "c", "abc"], 1 / 2),
    ],
)
def test_classification_with_upstreams_quirk(said: str, meant: str, classes: list[str], value: float) -> None:
    assert text.classification(said, meant, classes) == pytest.approx(value)


@pytest.mark.parametrize(
    ("said", "meant", "value"),
    [
        ("Paragraph 7", "Paragraph 7", 1.0),
        ("7", "Paragraph 7", 1.0),
        ("Paragraph 7, or 17, or 7", "Paragraph 7", 2 / 3),
        ("Paragraph 07", "Paragraph 7", 0.0),
        ("none", "Paragraph 7", 0.0),
    ],
)
def test_retrieval(said: str, meant: str, value: float) -> None:
    assert text.retrieval(said, meant) == pytest.approx(value)


@pytest.mark.parametrize(("said", "value"), [("12", 1.0), ("12 of 30", 1 / 2), ("twelve", 0.0), ("112", 0.0)])
def test_count(said: str, value: float) -> None:
    assert text.count(said, "12") == pytest.approx(value)


@pytest.mark.parametrize(("said", "meant", "value"), CODE)
def test_code_similarity_is_that_of_the_package(said: str, meant: str, value: float) -> None:
    assert text.code_similarity(said, meant) == value


@pytest.mark.parametrize(
    "said",
    ["\n\nreturn x", "# a remark\nreturn x\nreturn y", "```python\nreturn x", "// no\nreturn x"],
)
def test_code_similarity_takes_the_first_line_of_code(said: str) -> None:
    assert text.code_similarity(said, "return x") == 1.0


def test_code_similarity_equals_the_installed_package() -> None:
    fuzz = pytest.importorskip("fuzzywuzzy.fuzz")
    if fuzz.SequenceMatcher.__module__ != "difflib":
        pytest.skip("fuzzywuzzy uses python-Levenshtein here, whose ratio is another one")
    rng = random.Random(5)
    letters = string.ascii_lowercase[:6] + "(){}= "
    for _ in range(300):
        said, meant = ("".join(rng.choices(letters, k=rng.randrange(80))) for _ in range(2))
        assert text.code_similarity(said, meant) == fuzz.ratio(said, meant) / 100


def test_first_line() -> None:
    assert text.first_line("\n\nMarie Curie\nPassage:") == "Marie Curie"
    assert text.first_line(" Marie Curie") == " Marie Curie"
    assert text.first_line("") == ""


@pytest.mark.parametrize(
    ("said", "references", "every", "part"),
    [
        ("The numbers are 12 and 34.", ["12", "34"], 1.0, 1.0),
        ("12", ["12", "34"], 0.5, 1.0),
        ("ORLA", ["Orla"], 1.0, 1.0),
        ("123", ["12", "99", "98", "97"], 0.25, 1.0),  # a substring is enough
        ("", ["12"], 0.0, 0.0),
    ],
)
def test_string_match(said: str, references: list[str], every: float, part: float) -> None:
    assert string_match_all(said, references) == every
    assert string_match_part(said, references) == part


def test_control_characters_become_line_breaks() -> None:
    assert clean(" 12\x0034\t5 ") == "12\n34\n5"
    assert string_match_all("1\x002", ["12"]) == 0.0
