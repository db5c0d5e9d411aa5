"""Many questions about one text: the records of kv, asked for one after another on a growing cache.

    instruction / prose / "key 417086: 529314" / ... / "What is the value of key 417086?" / answer / "... 205714?" / ...

The text is read once, before any question is known, and must serve them all: what a method dropped for the first
question, or before it, is gone for the others. The idea is that of SCBench's multi-turn mode
(https://arxiv.org/abs/2412.10319); records, wording and score are those of kv. The questions of a sample go to places
spread evenly over the text, in random order; the first lies at ``depth(index)``. What the model answered stays in the
cache, right or wrong.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar

from questbench.errors import UsageError
from questbench.tasks._base import Sample, Task, Tokenizer, Turn
from questbench.tasks._haystack import depth, fitted, insert, shifted
from questbench.tasks._prose import Sentences
from questbench.tasks._records import checked

INSTRUCTION = (
    "The text below holds records. Each record is one line and gives the value of a key. "
    "Remember the records: I will ask for the values of several keys, one after another.\n"
)
RECORD = "key {key}: {value}"
QUESTION, PREFIX = "\nWhat is the value of key {key}?\n", "key {key}:"
MOST_RECORDS = 10_000


@dataclass(frozen=True)
class MultiTurn(Task):
    """Several of many records, asked for one after another."""

    turns: int = 8
    """Questions per text."""
    records: int = 64
    """Records in the text, at least as many as questions."""

    metric: ClassVar[str] = "accuracy"
    max_new_tokens: ClassVar[int] = 10
    binary: ClassVar[bool] = False
    """A sample's score is the share of its turns that were answered."""

    def __post_init__(self) -> None:
        """Refuse more questions than records."""
        if not 1 <= self.turns <= self.records <= MOST_RECORDS:
            raise UsageError(
                f"multiturn cannot ask {self.turns} questions about {self.records} records.",
                f"Use --task multiturn:turns=8:records=64 (no more turns than records, {MOST_RECORDS:,} at most).",
            )

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """Context and first question fill the length; the other turns come on top."""
        drawn = rng.sample(range(10_000, 100_000), 2 * self.records)
        pairs = [
            (checked(drawn[2 * at]), checked(drawn[2 * at + 1], off=rng.randrange(1, 10))) for at in range(self.records)
        ]
        pieces = [
            ((at + 0.5) / self.records, RECORD.format(key=key, value=value)) for at, (key, value) in enumerate(pairs)
        ]
        first = int(depth(index) * self.records)
        # Whole steps around the circle of records: no two turns ask for the same one.
        others = [(first + turn * self.records // self.turns) % self.records for turn in range(1, self.turns)]
        rng.shuffle(others)
        asked = [first, *others]
        prose = Sentences(rng)

        def build(words: int) -> Sample:
            text, spans = insert(prose.cut(words), pieces, "\n")
            needles = shifted(spans, len(INSTRUCTION))
            turns = tuple(_turn(*pairs[at], needles[at]) for at in asked)
            return Sample(
                id=f"{self.name}-{index:04d}",
                context=INSTRUCTION + text,
                question=turns[0].question,
                answer_prefix=turns[0].answer_prefix,
                answers=turns[0].answers,
                needles=turns[0].needles,
                meta={"depths": [round((at + 0.5) / self.records, 4) for at in asked], "records": self.records},
                turns=turns,
            )

        return fitted(build, task=self.name, length=length, tokenizer=tokenizer, remedy=", or fewer records")

    def score(self, sample: Sample, completion: str) -> float:
        """1 if the first run of digits is the value that the sample's question asks for."""
        found = re.search(r"\d+", completion)
        return float(found is not None and found.group() == sample.answers[0])


def _turn(key: int, value: int, needle: tuple[int, int]) -> Turn:
    return Turn(QUESTION.format(key=key), (str(value),), (needle,), PREFIX.format(key=key))
