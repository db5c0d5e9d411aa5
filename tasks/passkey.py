"""Pass key retrieval: find one five-digit number in a text that repeats itself.

    instruction / garbage / "The pass key is {k}. Remember it. {k} is the pass key." / garbage / question

The prompt is the published one: Mohtashami and Jaggi, "Landmark Attention" (NeurIPS 2023,
https://arxiv.org/abs/2305.16300), in the form of YaRN's evaluation (https://arxiv.org/abs/2309.00071), which the Quest
paper uses for its Table 1. The score is theirs too: the first run of digits in the completion, as a number.

Deviations, so that a result does not depend on chance or on the tokenizer: the length is counted in tokens, not in
characters divided by four; garbage is cut at words; the key always has five digits (upstream draws 1 to 50,000 from an
unseeded generator); depths are spread evenly over the samples whatever their number, upstream's are multiples of
``100 // samples`` percent and the question follows the key directly at 100.

``wording=number`` is a deviation for small chat models, which explain what a pass key is behind "The pass key is": the
question says that a number is wanted. Text, needle and score are the same.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar

from questbench.errors import UsageError
from questbench.tasks._base import Sample, Task, Tokenizer
from questbench.tasks._haystack import check_expressible, check_length, depth, fit, garbage, tokens

INSTRUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTIONS = {
    "published": "\nWhat is the pass key? ",
    "number": "\nWhich five-digit number is the pass key? Answer with the number only. ",
}
PREFIX = "The pass key is"


@dataclass(frozen=True)
class Passkey(Task):
    """One number in a haystack of five sentences."""

    wording: str = "published"
    """The question: ``published``, or ``number``, which small chat models understand."""

    metric: ClassVar[str] = "accuracy"
    max_new_tokens: ClassVar[int] = 10
    stop: ClassVar[tuple[str, ...]] = ()
    """Ten tokens, as published; the first number counts, whatever stands around it."""
    quest_paper_chars: ClassVar[int] = 400

    def __post_init__(self) -> None:
        """Refuse unknown wordings."""
        if self.wording not in QUESTIONS:
            raise UsageError(
                f"passkey has no wording '{self.wording}'.", f"Use passkey:wording={' or '.join(QUESTIONS)}."
            )

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """The key at ``depth(index)`` of the garbage."""
        key = rng.randrange(10_000, 100_000)
        place, question = depth(index), QUESTIONS[self.wording]
        needle = NEEDLE.format(key=key)

        def parts(words: int) -> tuple[str, str]:
            before = round(words * place)
            head = "\n".join([INSTRUCTION, *filter(None, [garbage(before)]), ""])
            return head, "\n".join([needle, *filter(None, [garbage(words - before)])])

        def count(words: int) -> int:
            return tokens(tokenizer, "".join(parts(words)) + question, PREFIX)

        words = max(fit(count, length), 0)
        reached = count(words)
        check_length(self.name, reached, length, least=count(0))
        check_expressible(self.name, tokenizer, str(key))
        head, tail = parts(words)
        return Sample(
            id=f"{self.name}-{index:04d}",
            context=head + tail,
            question=question,
            answer_prefix=PREFIX,
            answers=(str(key),),
            needles=((len(head), len(head) + len(needle)),),
            meta={"depth": place, "key": key, "tokens": reached},
        )

    def score(self, sample: Sample, completion: str) -> float:
        """1 if the first run of digits is the key."""
        found = re.search(r"\d+", completion)
        return float(found is not None and int(found.group()) == int(sample.answers[0]))
