"""Key-value retrieval: many records of equal rank, one of which is asked for after they were all read.

    instruction / prose / "key 417086: 529314" / prose / "key 205714: 830067" / ... / "What is the value of key ...?"

This is the cleanest way to part query-aware methods from eviction: before the question no record differs from any
other, so whatever drops entries beforehand must drop the answer as often as anything else. In the spirit of the
key-value task of "Lost in the Middle" (Liu et al., TACL 2024, https://arxiv.org/abs/2307.03172), with its own wording
and numbers for UUIDs, so that an answer is a few tokens. The question comes after the records only: asked before them
as well, it would tell an evicting method what to keep.

Keys differ from each other in at least two of six digits, because the last one is a check digit; values never carry
the right one, so that no value is equal to a key. All keys are distinct, and so are all values.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar

from questbench import units
from questbench.errors import UsageError
from questbench.tasks._base import Sample, Task, Tokenizer
from questbench.tasks._haystack import Prose, check_expressible, check_length, depth, fit, tokens
from questbench.tasks._records import checked

INSTRUCTION = (
    "The text below holds records. Each record is one line and gives the value of a key. "
    "Remember the records: I will ask for the value of one key."
)
RECORD = "key {key}: {value}"
QUESTION, PREFIX = "\nWhat is the value of key {key}?\n", "key {key}:"
MOST_RECORDS = 40_000


@dataclass(frozen=True)
class KV(Task):
    """One of many records in prose, or in a text of nothing but records."""

    records: int | str = 64
    """Records in the text, or ``full``: as many as fit."""

    metric: ClassVar[str] = "accuracy"
    max_new_tokens: ClassVar[int] = 10

    def __post_init__(self) -> None:
        """Refuse what is neither a number of records nor ``full``."""
        if isinstance(self.records, str) and units.is_whole(self.records):
            object.__setattr__(self, "records", int(self.records))
        valid = 1 <= self.records <= MOST_RECORDS if isinstance(self.records, int) else self.records == "full"
        if not valid:
            raise UsageError(
                f"kv cannot hold {self.records} records; it takes 1 to {MOST_RECORDS:,}, or full.",
                "Use --task kv, kv:records=16 or kv:records=full.",
            )

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """Asks for the record at ``depth(index)`` of all records."""
        drawn = rng.sample(range(10_000, 100_000), 2 * self._most(length))
        half = len(drawn) // 2
        pairs = [
            (checked(key), checked(value, off=rng.randrange(1, 10)))
            for key, value in zip(drawn[:half], drawn[half:], strict=True)
        ]
        prose = Prose(rng)

        def parts(records: int, words: int) -> tuple[str, str, str, tuple[int, int]]:
            """Text before the needle, the needle, text behind it, and the pair."""
            asked = int(depth(index) * records)
            filler = prose.words(words)
            cuts = [words * gap // (records + 1) for gap in range(records + 2)]
            lines = [INSTRUCTION]
            for record, (key, value) in enumerate(pairs[:records]):
                lines.append(" ".join(filler[cuts[record] : cuts[record + 1]]))
                lines.append(RECORD.format(key=key, value=value))
            lines.append(" ".join(filler[cuts[records] :]))
            at = 2 + 2 * asked
            head, tail = "\n".join(filter(None, lines[:at])), "\n".join(filter(None, lines[at + 1 :]))
            return head + "\n", lines[at], "\n" + tail if tail else "", pairs[asked]

        def count(records: int, words: int) -> int:
            head, needle, tail, (key, _) = parts(records, words)
            return tokens(tokenizer, head + needle + tail + QUESTION.format(key=key), PREFIX.format(key=key))

        # "full" is fitted in records and then, like any other number, filled up with prose.
        records = half if self.records != "full" else 1 + fit(lambda more: count(1 + more, 0), length, half - 1)
        records = max(records, 1)
        words = max(fit(lambda filler: count(records, filler), length), 0)
        reached = count(records, words)
        remedy = f", or {self.name}:records=full" if records > 1 else ""
        check_length(self.name, reached, length, least=count(records, 0), remedy=remedy)
        head, needle, tail, (key, value) = parts(records, words)
        check_expressible(self.name, tokenizer, str(value))
        return Sample(
            id=f"{self.name}-{index:04d}",
            context=head + needle + tail,
            question=QUESTION.format(key=key),
            answer_prefix=PREFIX.format(key=key),
            answers=(str(value),),
            needles=((len(head), len(head) + len(needle)),),
            meta={"depth": depth(index), "records": records, "key": key, "tokens": reached},
        )

    def score(self, sample: Sample, completion: str) -> float:
        """1 if the first run of digits is the value."""
        found = re.search(r"\d+", completion)
        return float(found is not None and found.group() == sample.answers[0])

    def _most(self, length: int) -> int:
        """Records that may be needed; no tokenizer writes one in fewer than two tokens."""
        return self.records if isinstance(self.records, int) else min(max(length // 2, 1), MOST_RECORDS)
