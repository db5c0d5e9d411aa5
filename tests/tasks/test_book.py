"""The self-made book, its prose and its words; and the questions about passages."""

import random
import re
from collections import Counter

import pytest
from suite import TOKENIZERS, fresh, sample_of

from questbench.tasks._book import FACTS, Book, full_names
from questbench.tasks._make import make_task
from questbench.tasks._metrics_text import normalize_answer, qa_f1
from questbench.tasks._prose import Sentences, sentence
from questbench.tasks._words import WORDS, article, keys, vocabulary


def text_of(sample):
    return sample.prompt


@pytest.mark.parametrize("people", [1, 5, 40])
def test_what_is_repeated_was_told_once_far_before(people):
    book = Book(random.Random(3), people)
    text, recalls = book.text(300 * people)
    assert len(recalls) == people * len(FACTS)
    repeated = {text[start:end] for start, end in recalls}
    for person in book.people:
        for fact, value in person.facts.items():
            told = [match.end() for match in re.finditer(re.escape(person.clause(fact)), text)]
            assert len(told) == 2 and value in repeated
            assert told[1] - told[0] > 0.15 * len(text)
            assert (told[1] - len(value), told[1]) in recalls
    assert recalls == sorted(recalls)
    assert not re.search(r"\ba [aeio]", text)
    assert all(start > 0.5 * len(text) for start, _ in recalls)


def test_book_is_a_prefix_free_function_of_its_seed():
    one, same, other = (Book(random.Random(seed), 4) for seed in (1, 1, 2))
    assert one.text(500) == same.text(500) == one.text(500)
    assert one.text(500) != other.text(500)
    assert {person.name for person in one.people} != {person.name for person in other.people}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("length", [1024, 4096])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_scored_part_is_as_long_as_asked_and_recalls(tokenizer, length, share):
    sample = sample_of(f"ppl:share={share}", 1, length, tokenizer)
    encode = TOKENIZERS[tokenizer].encode
    scored = len(encode(sample.question, add_special_tokens=False))
    assert scored / sample.meta["tokens"] == pytest.approx(share, abs=0.05)
    assert sample.question.startswith(" ") and not sample.context.endswith(" ")
    inside = [span for span in sample.recalls if span[0] >= len(sample.context)]
    told = [text_of(sample)[start:end] for start, end in inside]
    assert len(inside) >= 2
    assert all(value in sample.context for value in told), "what is scored was told before"


@pytest.mark.parametrize("length", [1024, 4096, 16384])
def test_cast_takes_up_its_share_in_any_tokens(length):
    for tokenizer, table in TOKENIZERS.items():
        sample = sample_of("ppl", 0, length, tokenizer)
        people = sample.meta["people"]
        empty, _ = Book(random.Random(0), people).text(0)
        share = len(table.encode(empty)) / length
        assert share <= 0.5 if people > 1 else share <= 0.9


def test_people_have_names_of_their_own():
    assert len(set(full_names(random.Random(0), 3000))) == 3000


def test_prose_hardly_repeats_itself():
    rng = random.Random(5)
    made = Counter(sentence(rng) for _ in range(5000))
    assert len(made) > 4950
    words = Counter(word for text in made for word in text.lower().split())
    assert len(words) > 400
    assert max(count for word, count in words.items() if word not in ("the", "a", "an")) < 0.03 * words.total()
    assert all(re.fullmatch(r"[A-Z][A-Za-z', ]+\.", text) for text in made), "no digits, no names"
    assert not any(re.search(r"\ba [aeio]|\ban [^aeiouh]|  |  ,", text) for text in made)


def test_sentences_are_cut_at_any_word():
    prose = Sentences(random.Random(1))
    whole = " ".join(prose.cut(400)).split()
    assert len(whole) == 400
    for words in (0, 1, 7, 399):
        assert " ".join(prose.cut(words)).split() == whole[:words]


def test_words_are_distinct_and_plain():
    rng = random.Random(2)
    assert len(WORDS) == len(set(WORDS)) > 600
    assert all(re.fullmatch("[a-z]+", word) for word in WORDS)
    many = vocabulary(rng, 3000)
    assert len(set(many)) == 3000 and set(WORDS) <= set(many)
    assert all(re.fullmatch("[a-z]+", word) for word in many)
    assert len(set(keys(rng, 2000))) == 2000


def test_article():
    assert [article(word) for word in ("oak", "honest man", "hare", "house", "yard")] == [
        "an oak",
        "an honest man",
        "a hare",
        "a house",
        "a yard",
    ]


def test_f1_counts_words_as_longbench_does():
    assert normalize_answer("The  Cat's, an 'old' Hat!") == "cats old hat"
    assert qa_f1("a brass compass", "Brass Compass.") == 1
    assert qa_f1("the compass", "brass compass") == pytest.approx(2 / 3)
    assert qa_f1("compass compass", "brass compass") == pytest.approx(1 / 2)
    assert qa_f1("well, it is a brass compass", "brass compass") == pytest.approx(4 / 7)
    assert qa_f1("", "compass") == qa_f1("lamp", "compass") == qa_f1("", "") == qa_f1("the", "the") == 0


def test_docqa_asks_for_a_fact_in_other_words():
    for index in range(12):
        sample = sample_of("docqa", index)
        (start, end) = sample.needles[0]
        needle, question = sample.context[start:end], sample.question.partition("Question: ")[2].partition("\n")[0]
        name = next(part for part in re.findall(r"[A-Z]\w+ [A-Z]\w+", question) if part in needle)
        assert f"Passage {1 + int(sample.meta['depth'] * sample.meta['passages'])}\n" in sample.context[:start]
        passage = sample.context[:start].rpartition("Passage ")[2]
        assert int(passage.split()[0]) == 1 + int(sample.meta["depth"] * sample.meta["passages"])
        asked = set(normalize_answer(question).split()) - set(normalize_answer(name).split())
        assert len(asked & set(normalize_answer(needle).split())) <= 2


def test_docqa_first_line_counts():
    task, sample = make_task("docqa"), sample_of("docqa", 2)
    gold = sample.answers[0]
    assert task.score(sample, f"{gold}.\nPassage 1") == 1
    assert 0 < task.score(sample, f"I think it is {gold}") < 1
    assert task.score(sample, f"unknown\n{gold}") == 0


def test_docqa_row_has_the_fields_of_longbench():
    task, sample = make_task("docqa"), fresh("docqa", 4)
    row = task.row(sample)
    assert set(row) == {"input", "context", "answers", "length", "dataset", "language", "all_classes", "_id"}
    assert row["answers"] == list(sample.answers) and row["answers"][0] in row["context"]
    assert row["context"].startswith("Passage 1\n") and row["length"] == len(row["context"].split())
    assert sample.question + sample.answer_prefix == f"\n\nQuestion: {row['input']}\nAnswer:"


def test_chain_scores_the_right_prefix():
    task, sample = make_task("chain"), sample_of("chain")
    walk = sample.answers[0].split(" -> ")
    assert len(walk) == 32
    assert task.score(sample, " -> ".join(walk[:8])) == 0.25
    broken = [*walk[:16], "111111", *walk[17:]]
    assert task.score(sample, " -> ".join(broken)) == 0.5
    assert task.score(sample, " -> ".join(walk[1:])) == 0
    assert task.score(sample, ", ".join(walk) + ", 123456") == 1


def test_chain_walks_along_its_links():
    sample = sample_of("chain:steps=40:links=64", 3)
    links = dict(re.findall(r"^stop (\d{6}) -> (\d{6})$", sample.context, flags=re.M))
    assert len(links) == len(set(links.values())) == 64 and set(links) == set(links.values())
    at, walk = str(sample.meta["start"]), []
    for _ in range(40):
        at = links[at]
        walk.append(at)
    assert " -> ".join(walk) == sample.answers[0]
    assert len(set(walk)) == 40
    starts = [start for start, _ in sample.needles]
    assert starts != sorted(starts), "links stand in another order than they are walked"
    wildcards = [stop[:place] + "?" + stop[place + 1 :] for stop in links for place in range(6)]
    assert len(set(wildcards)) == len(wildcards), "two stops differ in one digit only"
