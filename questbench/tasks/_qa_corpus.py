"""SQuAD and HotpotQA, in their own JSON and as the hub's parquet, as questions over a collection of documents.

Documents and which of them belong to a question are RULER's choice (https://arxiv.org/abs/2404.06654): all distinct
paragraphs of SQuAD, near ones those of the same article; all distinct "title, line break, text" of HotpotQA.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from questbench.errors import PrerequisiteError
from questbench.tasks._data_schema import FULL_TEXT, LIST, OBJECT, TEXT, TEXTS, Kind, Schema, check, choose, held
from questbench.tasks._data_table import Row, Table, describe

QUESTIONS = Schema("questions", {"question": FULL_TEXT, "answers": TEXTS, "gold": LIST, "near": LIST, "docs": LIST})
"""What both become: answers, and numbers of documents in ``docs``, one list that all rows share.

``gold`` belong to the question, ``near`` are put before others; ``evidence`` are those that hold the answer.
"""
SQUAD = Schema("SQuAD 2.0 (dev-v2.0.json)", {"data": LIST})
SQUAD_FLAT = Schema("SQuAD of the hub", {"title": TEXT, "context": FULL_TEXT, "question": TEXT, "answers": OBJECT})
HOTPOT = Schema(
    "HotpotQA (hotpot_dev_distractor_v1.json)", {"question": FULL_TEXT, "answer": FULL_TEXT, "context": LIST}
)
HOTPOT_FLAT = Schema("HotpotQA of the hub", {"question": FULL_TEXT, "answer": FULL_TEXT, "context": OBJECT})


def squad(table: Table, label: str) -> Table:
    """Questions that have an answer, with their paragraphs.

    Raises:
        PrerequisiteError: another schema, naming the place.
    """
    schema = choose(table, (SQUAD, SQUAD_FLAT), label)
    check(table, (schema,), label)
    found = list(_squad_json(table) if schema is SQUAD else _squad_flat(table))
    docs = sorted({context for _, context, _, _ in found})
    number = {context: index for index, context in enumerate(docs)}
    articles: dict[str, dict[int, None]] = {}  # a dict keeps the order of the article
    for article, context, _, _ in found:
        articles.setdefault(article, {})[number[context]] = None
    rows: list[Row] = [
        {
            "question": question,
            "answers": answers,
            "gold": [number[context]],
            "near": [other for other in articles[article] if other != number[context]],
            "evidence": [number[context]],
            "docs": docs,
        }
        for article, context, question, answers in found
        if question and answers
    ]
    return _questions(table, rows, label)


def hotpotqa(table: Table, label: str) -> Table:
    """All questions, each with its ten paragraphs.

    Raises:
        PrerequisiteError: another schema, naming the place.
    """
    nested = choose(table, (HOTPOT, HOTPOT_FLAT), label)
    schema = HOTPOT_FLAT if nested is HOTPOT and isinstance(table[0]["context"], Mapping) else nested
    check(table, (schema,), label)
    found = []
    for index in range(len(table)):
        row = table[index]
        titled = _titled(row, table.where(index))
        found.append((row, titled, _supporting(row, table.where(index))))
    docs = sorted({text for _, titled, _ in found for _, text in titled})
    number = {text: index for index, text in enumerate(docs)}
    rows: list[Row] = [
        {
            "question": row["question"],
            "answers": [row["answer"]],
            "gold": list(dict.fromkeys(number[text] for _, text in titled)),
            "near": [],
            "evidence": list(dict.fromkeys(number[text] for title, text in titled if title in titles)),
            "docs": docs,
        }
        for row, titled, titles in found
    ]
    return _questions(table, rows, label)


def _questions(table: Table, rows: list[Row], label: str) -> Table:
    if not rows:
        raise PrerequisiteError(
            f"{table.name} has no question with an answer for {label}.", "Name another file with --data."
        )
    return dataclasses.replace(table, rows=rows, lines=())


def _squad_json(table: Table) -> Iterator[tuple[str, str, str, list[str]]]:
    """(article, paragraph, question, answers); also once per paragraph without a question, for its text."""
    for row in range(len(table)):
        for a, article in enumerate(table[row]["data"]):
            path = f"{table.name}: data[{a}]"
            for p, paragraph in enumerate(_get(article, "paragraphs", LIST, path)):
                here = f"{path}.paragraphs[{p}]"
                context = _get(paragraph, "context", FULL_TEXT, here)
                yield f"{row}.{a}", context, "", []
                for q, asked in enumerate(_get(paragraph, "qas", LIST, here)):
                    at = f"{here}.qas[{q}]"
                    question = _get(asked, "question", FULL_TEXT, at)
                    answers = [
                        _get(answer, "text", FULL_TEXT, f"{at}.answers[{n}]")
                        for n, answer in enumerate(_get(asked, "answers", LIST, at))
                    ]
                    yield f"{row}.{a}", context, question, [] if asked.get("is_impossible", False) else answers


def _squad_flat(table: Table) -> Iterator[tuple[str, str, str, list[str]]]:
    """The same of one row per question; no answer means that there is none."""
    for index in range(len(table)):
        row = table[index]
        where = f"{table.where(index)}: answers"
        texts = _get(row["answers"], "text", LIST, where)
        listed = [held(text, FULL_TEXT, f"{where}.text[{n}]") for n, text in enumerate(texts)]
        yield row["title"], row["context"], row["question"], listed


def _supporting(row: Row, where: str) -> frozenset[str]:
    """Titles of the paragraphs that hold the answer; none where the file does not say."""
    facts = row.get("supporting_facts")
    if facts is None:
        return frozenset()
    if isinstance(facts, Mapping):
        titles = _get(facts, "title", LIST, f"{where}: supporting_facts")
        return frozenset(held(title, TEXT, f"{where}: supporting_facts.title[{n}]") for n, title in enumerate(titles))
    pairs = held(facts, LIST, f"{where}: 'supporting_facts'")
    for number, pair in enumerate(pairs):
        if not (isinstance(pair, list | tuple) and pair and isinstance(pair[0], str)):
            raise PrerequisiteError(
                f"{where}: supporting_facts[{number}] is {describe(pair)}, but must be a title and a number.",
                "Repair or replace the file.",
            )
    return frozenset(pair[0] for pair in pairs)


def _titled(row: Row, where: str) -> list[tuple[str, str]]:
    """(title, RULER's document) of each paragraph of a HotpotQA row."""
    context = row["context"]
    if isinstance(context, Mapping):
        titles = _get(context, "title", LIST, f"{where}: context")
        texts: Sequence[Any] = _get(context, "sentences", LIST, f"{where}: context")
        pairs: list[Any] = list(zip(titles, texts, strict=False)) if len(titles) == len(texts) else [None]
    else:
        pairs = list(context)
    for number, pair in enumerate(pairs):
        fine = isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) and TEXTS.holds(pair[1])
        if not fine:
            raise PrerequisiteError(
                f"{where}: context[{number}] is {describe(pair)}, but must be a title and a list of sentences.",
                "Repair or replace the file.",
            )
    if not pairs:
        raise PrerequisiteError(f"{where}: 'context' is an empty list.", "Repair or replace the file.")
    return [(title, f"{title}\n{''.join(sentences)}") for title, sentences in pairs]


def _get(value: Any, key: str, kind: Kind, where: str) -> Any:
    """``value[key]``, checked.

    Raises:
        PrerequisiteError: it is not there or of another kind.
    """
    if not isinstance(value, Mapping):
        raise PrerequisiteError(f"{where} is {describe(value)}, but must be an object.", "Repair or replace the file.")
    if key not in value:
        raise PrerequisiteError(f"{where} lacks '{key}'.", "Repair or replace the file.")
    return held(value[key], kind, f"{where}: '{key}'")
