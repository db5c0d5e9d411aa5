"""Needle in a haystack: one number in prose, over a grid of lengths and depths (in the spirit of G. Kamradt's test).

    instruction / prose / "The magic number of the misty harbor is 482135." / prose / question

Sample ``index`` lies at depth ``index % depths`` of ``depths`` evenly spaced ones, 0 and 1 included: right behind the
instruction and right before the question. So any multiple of ``depths`` samples fills a column of the heat map evenly,
and ``--seq-len 1k,2k,4k`` draws its columns. The idea is Kamradt's
(https://github.com/gkamradt/LLMTest_NeedleInAHaystack, 2023). Deviations: prose by our own grammar for essays, a number
that is scored exactly for a sentence that another model grades, lengths in tokens of the model.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar

from questbench.errors import UsageError
from questbench.tasks._base import Sample, Task, Tokenizer
from questbench.tasks._haystack import fitted, garbage_lines, insert, shifted
from questbench.tasks._prose import Sentences
from questbench.tasks._words import keys

INSTRUCTION = "A magic number is hidden in the text below. Remember it: I will ask for it afterwards.\n"
NEEDLE = "The magic number of the {key} is {value}."
QUESTION, PREFIX = "\nWhat is the magic number of the {key}? ", "The magic number of the {key} is"


@dataclass(frozen=True)
class NeedleInAHaystack(Task):
    """One number at a depth of the grid, or always at the same."""

    depths: int = 11
    """Rows of the heat map."""
    depth: float | str = "grid"
    """One depth for all samples, 0 to 1; ``grid`` goes through ``depths``."""
    haystack: str = "prose"
    """``prose``, or the pass key task's ``garbage``."""

    metric: ClassVar[str] = "accuracy"
    max_new_tokens: ClassVar[int] = 10
    default_samples: ClassVar[int] = 55

    def __post_init__(self) -> None:
        """Refuse depths outside the text and unknown haystacks."""
        if not 2 <= self.depths <= 1000:
            raise UsageError(f"niah cannot have {self.depths} depths.", "Use --task niah:depths=11 (2 to 1000).")
        if self.depth != "grid" and not (isinstance(self.depth, float | int) and 0 <= self.depth <= 1):
            raise UsageError(f"niah has no depth {self.depth}.", "Use --task niah:depth=0.5 (0 to 1), or depth=grid.")
        if self.haystack not in ("prose", "garbage"):
            raise UsageError(f"niah has no haystack '{self.haystack}'.", "Use niah:haystack=prose or garbage.")

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """The number at the depth of ``index``."""
        place = self.depth if isinstance(self.depth, float | int) else index % self.depths / (self.depths - 1)
        key = keys(rng, 1)[0].replace("-", " ")
        value = rng.randrange(100_000, 1_000_000)
        needle = NEEDLE.format(key=key, value=value)
        question, prefix = QUESTION.format(key=key), PREFIX.format(key=key)
        prose = Sentences(rng)

        def build(words: int) -> Sample:
            units = prose.cut(words) if self.haystack == "prose" else garbage_lines(words)
            text, spans = insert(units, [(place, needle)], " ")
            return Sample(
                id=f"{self.name}-{index:04d}",
                context=INSTRUCTION + text,
                question=question,
                answer_prefix=prefix,
                answers=(str(value),),
                needles=shifted(spans, len(INSTRUCTION)),
                meta={"depth": place, "key": key},
            )

        return fitted(build, task=self.name, length=length, tokenizer=tokenizer)

    def score(self, sample: Sample, completion: str) -> float:
        """1 if the first run of digits is the number."""
        found = re.search(r"\d+", completion)
        return float(found is not None and found.group() == sample.answers[0])
