"""RULER's needle tasks: keys with values hidden in noise, in prose or among needles of the same form.

Wording, numbers of needles and score are RULER's (Hsieh et al., COLM 2024, https://arxiv.org/abs/2404.06654,
https://github.com/NVIDIA/RULER, Apache-2.0), rewritten from their description. Deviations, alike for all of them: keys
of two words from our own lists; the needle that is asked for lies at depths that spread evenly over the samples, the
others at random ones; order and positions are drawn anew for each sample (upstream repeats one shuffle); filler is
broken off at a word to meet the length. A task whose essays are replaced by prose of our own grammar has ``@prose`` in
its name, so that its results are never taken for RULER's.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from typing import ClassVar, Literal

from questbench.tasks._base import Sample, Tokenizer
from questbench.tasks._haystack import answer_room, depth, fit, fitted, garbage_lines, insert, shifted, tokens
from questbench.tasks._prose import Sentences
from questbench.tasks._ruler import RulerTask
from questbench.tasks._words import keys

ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "{kind} afterwards.\n",
    "\nWhat is the special magic {kind} for {query} mentioned in the provided text? ",
    "The special magic {kind} for {query} mentioned in the provided text is",
)
SEVERAL = (
    "Some special magic {kind}s are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the {kind}s afterwards.\n",
    "\nWhat are all the special magic {kind}s for {query} mentioned in the provided text? ",
    "The special magic {kind}s for {query} mentioned in the provided text are",
)
NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
TOKENS_PER_NEEDLE = 8
"""No tokenizer writes a needle in fewer: so many are drawn that they always suffice."""
MOST_NEEDLES = 40_000


def _uuids(rng: random.Random, count: int) -> list[str]:
    return [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(count)]


def _numbers(rng: random.Random, count: int) -> list[str]:
    """Distinct numbers of seven digits."""
    return [str(number) for number in rng.sample(range(1_000_000, 10_000_000), count)]


DRAW: dict[str, Callable[[random.Random, int], list[str]]] = {"word": keys, "number": _numbers, "uuid": _uuids}


class RulerNiah(RulerTask):
    """One of RULER's needle tasks; a subclass says which."""

    haystack: ClassVar[Literal["noise", "prose", "needle"]]
    key_kind: ClassVar[str] = "word"
    value_kind: ClassVar[str] = "number"
    keys: ClassVar[int] = 1
    values_per_key: ClassVar[int] = 1
    queries: ClassVar[int] = 1

    max_new_tokens: ClassVar[int] = 128
    binary: ClassVar[bool] = True

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """Asks for the first ``queries`` keys."""
        spare = min(length // TOKENS_PER_NEEDLE, MOST_NEEDLES) if self.haystack == "needle" else 0
        drawn_keys = DRAW[self.key_kind](rng, self.keys + spare)
        drawn_values = DRAW[self.value_kind](rng, self.keys * self.values_per_key + spare)
        count = self.keys * self.values_per_key
        needles = [
            NEEDLE.format(kind=self.value_kind, key=drawn_keys[at // self.values_per_key], value=drawn_values[at])
            for at in range(count)
        ]
        places = [depth(index), *(rng.random() for _ in needles[1:])]
        asked = self.queries * self.values_per_key
        query = drawn_keys[0]
        if self.queries > 1:
            query = ", ".join(drawn_keys[: self.queries - 1]) + f", and {drawn_keys[self.queries - 1]}"
        texts = ONE if asked == 1 else SEVERAL
        head, tail, prefix = (part.format(kind=self.value_kind, query=query) for part in texts)
        references = drawn_values[:asked]
        answer = ", ".join(references)
        prose = Sentences(rng)
        others = [
            NEEDLE.format(kind=self.value_kind, key=key, value=value)
            for key, value in zip(drawn_keys[self.keys :], drawn_values[count:], strict=True)
        ]

        def build(words: int, distractors: int = 0) -> Sample:
            if self.haystack == "prose":
                units, joiner = prose.cut(words), " "
            else:
                units, joiner = garbage_lines(words) + others[:distractors], "\n"
            text, spans = insert(units, list(zip(places, needles, strict=True)), joiner)
            return Sample(
                id=f"{self.name}-{index:04d}",
                context=head + text,
                question=tail,
                answer_prefix=prefix,
                answers=(answer,),
                needles=shifted(spans[:asked], len(head)),
                needles_needed="any" if asked == 1 else "all",
                meta={"depth": places[0], "query": query, "references": references, "distractors": distractors},
                max_new_tokens=answer_room(tokenizer, answer, least=self.max_new_tokens),
            )

        if self.haystack != "needle":
            return fitted(build, task=self.name, length=length, tokenizer=tokenizer)

        def size(distractors: int) -> int:
            sample = build(0, distractors)
            return tokens(tokenizer, sample.context + sample.question, sample.answer_prefix)

        # Needles alone fill the text; less than one needle is left, which noise at the beginning takes up.
        most = max(fit(size, length, spare), 0)
        return fitted(lambda words: build(words, most), task=self.name, length=length, tokenizer=tokenizer)
