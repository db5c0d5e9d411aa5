"""Frequent words: a text of coded words whose frequencies follow Zipf's law; the three most frequent (RULER's fwe).

    "... kqzvma ... ... ltyikj kqzvma ..." / "What are the three most frequently appeared words in the above ...?"

Nothing is hidden anywhere: the whole text counts, which is the worst case for reading few entries. Wording, law
(``alpha`` 2, so that shares are 1/k^2), and score are RULER's (https://arxiv.org/abs/2404.06654,
https://github.com/NVIDIA/RULER, Apache-2.0): the most frequent word is replaced by dots, the next three are the answer.
The vocabulary has one word per 50 tokens of the length. Deviations: every sample has its own order (upstream repeats
one shuffle), and what rounding leaves over is dots.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from typing import ClassVar

from questbench.errors import UsageError
from questbench.tasks._base import Sample, Tokenizer
from questbench.tasks._haystack import answer_room, fitted
from questbench.tasks._ruler import RulerTask

INSTRUCTION = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. "
)
QUESTION = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text? "
)
PREFIX = "Answer: According to the coded text above, the three most frequently appeared words are:"
DOTS = "..."
ASKED, LETTERS, TOKENS_PER_WORD = 3, 6, 50


def counts(words: int, ranks: int, alpha: float) -> list[int]:
    """Occurrences of rank 1, 2, ... in a text of ``words`` words: shares ``k ** -alpha``, rank 1 takes up the rest."""
    weights = [rank**-alpha for rank in range(1, ranks + 1)]
    total = sum(weights)
    found = [int(words * weight / total) for weight in weights]
    return [found[0] + words - sum(found), *found[1:]]


@dataclass(frozen=True)
class FrequentWords(RulerTask):
    """Three frequent words among dots and rare words."""

    alpha: float = 2.0
    """Exponent of the law; the larger, the more the frequent words stand out."""

    max_new_tokens: ClassVar[int] = 50

    def __post_init__(self) -> None:
        """Refuse laws under which no word stands out."""
        if not 1.1 <= self.alpha <= 5:
            raise UsageError(f"fwe cannot have alpha={self.alpha}.", "Use --task fwe:alpha=2.0 (1.1 to 5).")

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """Coded words and an order of their own for every index."""
        ranks = max(length // TOKENS_PER_WORD, ASKED + 2)
        coded: dict[str, None] = {}
        while len(coded) < ranks - 1:
            coded["".join(rng.choices(string.ascii_lowercase, k=LETTERS))] = None
        names = [DOTS, *coded]
        references = names[1 : 1 + ASKED]
        answer = " ".join(references)
        order = rng.getrandbits(64)

        def build(words: int) -> Sample:
            text = [
                name for name, count in zip(names, counts(words, ranks, self.alpha), strict=True) for _ in range(count)
            ]
            random.Random(order).shuffle(text)
            return Sample(
                id=f"{self.name}-{index:04d}",
                context=INSTRUCTION + " ".join(text),
                question=QUESTION,
                answer_prefix=PREFIX,
                answers=(answer,),
                meta={"references": references, "counts": counts(words, ranks, self.alpha)[: ASKED + 2]},
                max_new_tokens=answer_room(tokenizer, answer, least=self.max_new_tokens),
            )

        sample = fitted(build, task=self.name, length=length, tokenizer=tokenizer)
        third, fourth = sample.meta["counts"][ASKED], sample.meta["counts"][ASKED + 1]
        if third == fourth:
            raise UsageError(
                f"fwe: at {length:,} tokens the third and the fourth word are equally frequent ({third} times).",
                f"Use --seq-len {2 * length} or another alpha.",
            )
        return sample
