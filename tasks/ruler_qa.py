"""Needs --data: RULER's question answering over SQuAD and HotpotQA, made to any length (https://arxiv.org/abs/2404.06654).

    --task ruler_qa:set=squad --data dev-v2.0.json
    --task ruler_qa:set=hotpotqa --data hotpot_dev_distractor_v1.json
    --task ruler_qa --data FOLDER      both, out of one folder

Question i is the file's i-th that has an answer. Its own paragraphs and as many others as fit, those of the same
article first, stand in random order in front of it; prompt, answer length and score (any accepted answer occurs in the
completion) are RULER's qa_1 and qa_2. Deviations: the order is drawn per sample, where RULER's fixed seed puts the
paragraph with the answer at one place for all samples of a length; ``--seq-len`` counts the prompt alone, RULER's
length includes the 32 tokens of the answer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from questbench import registry
from questbench.errors import UsageError
from questbench.tasks import _qa_corpus as corpus
from questbench.tasks._base import Sample, Tokenizer
from questbench.tasks._data import DataTask, Fetch
from questbench.tasks._data_schema import Schema
from questbench.tasks._data_table import Table
from questbench.tasks._haystack import fit, tokens
from questbench.tasks._metrics_ruler import string_match_part

_ASK = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
HEAD = f"{_ASK}\n\nThe following are given documents.\n\n"
QUESTION, PREFIX = f"\n\n{_ASK}\n\nQuestion: {{question}}", " Answer:"
DOCUMENT = "Document {number}:\n{text}"
SHORTEST_DOCUMENT = 8
"""No tokenizer writes a document and its heading in fewer tokens."""
FILES = {
    "squad": Fetch(
        "SQuAD 2.0's dev-v2.0.json (4.4 MB)",
        "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json",
        "hf:rajpurkar/squad_v2",
    ),
    "hotpotqa": Fetch(
        "HotpotQA's hotpot_dev_distractor_v1.json (46 MB)",
        "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json",
        "hf:hotpotqa/hotpot_qa",
    ),
}
NAMES = {
    "squad": ("dev-v2.0.json", "squad.json", "squad_v2/validation-*.parquet", "squad.parquet"),
    "hotpotqa": (
        "hotpot_dev_distractor_v1.json",
        "hotpotqa.json",
        "distractor/validation-*.parquet",
        "hotpotqa.parquet",
    ),
}


@dataclass(frozen=True)
class RulerQA(DataTask):
    """A question, the paragraphs that answer it, and others."""

    set: str = "both"
    """squad, hotpotqa or both."""

    metric: ClassVar[str] = "string_match_part"
    max_new_tokens: ClassVar[int] = 32
    stop: ClassVar[tuple[str, ...]] = ()
    default_samples: ClassVar[int] = 100
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {"both": tuple(FILES)}
    known: ClassVar[Mapping[str, str]] = {
        "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8": "dev-v2.0.json",
        "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea": "hotpot_dev_distractor_v1.json",
    }

    def __post_init__(self) -> None:
        """Refuse unknown sets."""
        if self.set not in (*FILES, *self.groups):
            raise registry.unknown("set of ruler_qa", self.set, [*FILES, *self.groups])

    @property
    def label(self) -> str:
        """``ruler_qa:set=squad``."""
        return f"{self.name}:set={self.set}"

    def fetch(self) -> Fetch:
        """The dev file of the set."""
        return FILES.get(self.set, FILES["squad"])

    def patterns(self, length: int) -> tuple[str, ...]:
        """Upstream's names, RULER's, and the hub's."""
        del length
        return NAMES[self._one()]

    def schemas(self) -> tuple[Schema, ...]:
        """What ``prepare`` makes."""
        return (corpus.QUESTIONS,)

    def prepare(self, table: Table) -> Table:
        """Questions and documents."""
        unpack = {"squad": corpus.squad, "hotpotqa": corpus.hotpotqa}[self._one()]
        return unpack(table, self.label)

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """Question ``index`` behind as many documents as fit into ``length`` tokens."""
        row, origin = self.row(index, length)
        docs, gold, near = row["docs"], list(row["gold"]), list(row["near"])
        # Drawn once for any number of documents: the order of joining, and the place of each in the text.
        most = min(len(docs) - len(gold), max(length // SHORTEST_DOCUMENT, 1))
        own = {*gold, *near}
        rng.shuffle(near)
        wanted = min(most, len(docs) - len(own))
        drawn = rng.sample(range(len(docs)), min(len(docs), wanted + len(own)))
        others = (near + [number for number in drawn if number not in own])[:most]
        places = {number: rng.random() for number in [*gold, *others]}
        question = QUESTION.format(question=row["question"])

        def build(count: int) -> tuple[str, list[int]]:
            order = sorted([*gold, *others[:count]], key=places.__getitem__)
            texts = [DOCUMENT.format(number=place, text=docs[number]) for place, number in enumerate(order, 1)]
            return HEAD + "\n\n".join(texts), order

        count = fit(lambda number: tokens(tokenizer, build(number)[0] + question, PREFIX), length, len(others))
        if count < 0:
            least = tokens(tokenizer, build(0)[0] + question, PREFIX)
            raise UsageError(
                f"{self.label}: the documents of question {index} alone have {least:,} tokens with this tokenizer.",
                f"Use --seq-len {least} or more.",
            )
        context, order = build(count)
        return Sample(
            id=f"{self.name}-{self.set}-{index:04d}",
            context=context,
            question=question,
            answer_prefix=PREFIX,
            answers=tuple(row["answers"]),
            needles=_spans(context, [docs[number] for number in row["evidence"]]),
            needles_needed="all",
            meta={
                "set": self.set,
                "documents": len(order),
                "of_documents": len(docs),
                "evidence": [order.index(number) + 1 for number in row["evidence"]],
                "tokens": tokens(tokenizer, context + question, PREFIX),
                **origin,
            },
        )

    def score(self, sample: Sample, completion: str) -> float:
        """1 if any accepted answer occurs in the completion."""
        return string_match_part(completion, sample.answers)

    def _one(self) -> str:
        if self.set not in FILES:
            raise UsageError(f"{self.label} is several sets.", f"Name one: {', '.join(FILES)}.")
        return self.set


def _spans(context: str, texts: list[str]) -> tuple[tuple[int, int], ...]:
    """Where each document's text stands: behind a heading, so that no other's text can be taken for it."""
    found: list[tuple[int, int]] = []
    for text in texts:
        at = context.find(":\n" + text)
        found.append((at + 2, at + 2 + len(text)))
    return tuple(found)
