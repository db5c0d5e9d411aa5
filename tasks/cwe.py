"""Common words: a long numbered list in which ten words occur more often than the others (RULER's cwe).

    one-shot example / "1. walnut 2. admire 3. walnut ... " / "What are the 10 most common words in the above list?"

Nothing is hidden anywhere: the whole list counts, which is the worst case for reading few entries. Wording, numbers and
score are RULER's (https://arxiv.org/abs/2404.06654, https://github.com/NVIDIA/RULER, Apache-2.0): ten words 30 times
among others 3 times each, after a solved list of 40 words (10 times, 3 times); below 4k tokens, or where that does not
fit, 6 times among single words after a solved list of 20 (3 times, once). Deviations: words from our own lists and,
where they run out, pronounceable ones that do not exist (their number is in ``meta``); every sample has its own order,
where upstream repeats one shuffle and so puts the common words at the same places each time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from questbench.errors import UsageError
from questbench.tasks._base import Sample, Tokenizer
from questbench.tasks._haystack import answer_room, check_expressible, check_length, fit, tokens
from questbench.tasks._ruler import RulerTask
from questbench.tasks._words import WORDS, vocabulary

INSTRUCTION = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
QUESTION = "\nQuestion: What are the 10 most common words in the above list? "
PREFIX = "Answer: The top 10 words that appear most often in the list are:"
COMMON = 10
LONG, SHORT = ((40, 10, 3), (30, 3)), ((20, 3, 1), (6, 1))
"""Words, repeats of common and of other words in the example; repeats of common and of other words in the list."""
LONG_FROM = 4096


def listed(words: list[str]) -> str:
    """``1. word 2. word ...``."""
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))


def answer_of(words: list[str]) -> str:
    """The form in which the example answers."""
    return listed(words[:COMMON])


@dataclass(frozen=True)
class CommonWords(RulerTask):
    """Ten common words among as many others as fit."""

    max_new_tokens: ClassVar[int] = 120

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """A list and an order of its own for every index."""
        last: UsageError | None = None
        for setting in (LONG, SHORT) if length >= LONG_FROM else (SHORT,):
            try:
                return self._sample(index, length, tokenizer, random.Random(rng.getrandbits(64)), setting)
            except UsageError as error:
                last = error
        raise last or AssertionError("no setting was tried")

    def _sample(
        self,
        index: int,
        length: int,
        tokenizer: Tokenizer,
        rng: random.Random,
        setting: tuple[tuple[int, int, int], tuple[int, int]],
    ) -> Sample:
        (shown, shown_often, shown_rarely), (often, rarely) = setting
        # A word takes a token for its number and one for itself at least, as often as it stands in the list.
        most = length // (2 * rarely)
        words = vocabulary(rng, shown + COMMON + most)
        example = words[:shown]
        solved = example[:COMMON] * shown_often + example[COMMON:] * shown_rarely
        rng.shuffle(solved)
        head = f"{INSTRUCTION}{listed(solved)}{QUESTION}{PREFIX} {answer_of(example)}\n\n{INSTRUCTION}"
        common, others = words[shown : shown + COMMON], words[shown + COMMON :]
        # Every repeat has a random rank of its own, so that a list of other length is the same list but for its end.
        ranks = {(word, turn): rng.random() for word in common for turn in range(often)}
        ranks |= {(word, turn): rng.random() for word in others for turn in range(rarely)}

        def context(more: int) -> str:
            """The example, and a list of the common words and of ``more`` entries of others."""
            entries = [(word, turn) for word in common for turn in range(often)]
            entries += [(others[at // rarely], at % rarely) for at in range(more)]
            entries.sort(key=ranks.__getitem__)
            return head + listed([word for word, _ in entries])

        def count(more: int) -> int:
            return tokens(tokenizer, context(more) + QUESTION, PREFIX)

        more = max(fit(count, length, most * rarely), 0)
        reached = count(more)
        check_length(self.name, reached, length, least=count(0))
        check_expressible(self.name, tokenizer, " ".join(common))
        made = set(others[: -(-more // rarely)]) | {*common, *example}
        return Sample(
            id=f"{self.name}-{index:04d}",
            context=context(more),
            question=QUESTION,
            answer_prefix=PREFIX,
            answers=(answer_of(common),),
            meta={
                "references": common,
                "repeats": [often, rarely],
                "entries": COMMON * often + more,
                "pseudo_words": len(made - set(WORDS)),
                "tokens": reached,
            },
            max_new_tokens=answer_room(tokenizer, answer_of(common), least=self.max_new_tokens),
        )
