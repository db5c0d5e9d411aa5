"""Variable tracking: chains of assignments in noise; all variables that hold a value are asked for (RULER's vt).

    VAR XKQZA = 48213 / noise / VAR PLMRE = VAR XKQZA / noise / ... / "Find all variables that are assigned ... 48213"

Wording, noise, one-shot example and score are RULER's (Hsieh et al., COLM 2024, https://arxiv.org/abs/2404.06654,
https://github.com/NVIDIA/RULER, Apache-2.0), rewritten from their description: ``chains`` chains of ``hops``
assignments, the first one's value is asked for, the answer is its ``hops + 1`` names. Deviations: no space at the end
of the prompt, which no tokenizer splits alike; the last line of noise is broken off to meet the length; the example is
drawn anew for each sample and has one line of noise per assignment; values differ between chains; more than 30 tokens
are generated where a tokenizer needs them for the names.
"""

from __future__ import annotations

import itertools
import random
import string
from dataclasses import dataclass
from typing import ClassVar

from questbench.errors import UsageError
from questbench.tasks._base import Sample, Tokenizer
from questbench.tasks._haystack import answer_room, fitted, garbage_lines, insert, shifted
from questbench.tasks._ruler import RulerTask

INSTRUCTION = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
FIRST, NEXT = "VAR {name} = {value}", "VAR {name} = VAR {before}"
QUESTION = "\nQuestion: Find all variables that are assigned the value {value} in the text above. "
PREFIX = (
    "Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned the "
    "value {value}, they are:"
)
NOISE_WORDS_PER_LINE = 20


def names(rng: random.Random, count: int, letters: int) -> list[str]:
    """Distinct names of capital letters, none of which is ``VAR``."""
    found: dict[str, None] = {}
    while len(found) < count:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name != "VAR":
            found[name] = None
    return list(found)


def assignments(chain: list[str], value: int) -> list[str]:
    """The lines of a chain, in order."""
    lines = [FIRST.format(name=chain[0], value=value)]
    return lines + [NEXT.format(name=name, before=before) for before, name in itertools.pairwise(chain)]


@dataclass(frozen=True)
class VariableTracking(RulerTask):
    """RULER's setting: one chain of four hops, with a solved example before it."""

    chains: int = 1
    """Chains in the text; one is asked for."""
    hops: int = 4
    """Assignments from variable to variable in each chain."""
    example: bool = True
    """Show a solved example first, as RULER does."""

    max_new_tokens: ClassVar[int] = 30

    def __post_init__(self) -> None:
        """Refuse empty chains, and more of them than a text can hold."""
        if not (1 <= self.chains <= 64 and 1 <= self.hops <= 32):
            raise UsageError(
                f"vt cannot have {self.chains} chains of {self.hops} hops.",
                "Use --task vt:chains=1:hops=4 (1 to 64 chains, 1 to 32 hops).",
            )

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """Asks for the first of the chains, whose lines stand at random depths in order."""
        values = rng.sample(range(10_000, 100_000), self.chains + 1)
        size = self.hops + 1
        drawn = names(rng, size * self.chains, letters=5)
        chains = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        depths = [sorted(rng.random() for _ in chain) for chain in chains]
        pieces = [
            piece
            for places, chain, value in zip(depths, chains, values, strict=False)
            for piece in zip(places, assignments(chain, value), strict=True)
        ]
        shown = self._example(rng, values[-1]) if self.example else ""
        head = shown + INSTRUCTION
        answer = " ".join(chains[0])

        def build(words: int) -> Sample:
            text, spans = insert(garbage_lines(words), pieces, "\n")
            return Sample(
                id=f"{self.name}-{index:04d}",
                context=head + text,
                question=QUESTION.format(value=values[0]),
                answer_prefix=PREFIX.format(value=values[0], count=size),
                answers=(answer,),
                needles=shifted(spans[:size], len(head)),
                needles_needed="all",
                meta={"references": chains[0], "value": values[0], "depths": [round(at, 4) for at in depths[0]]},
                max_new_tokens=answer_room(tokenizer, answer, least=self.max_new_tokens),
            )

        return fitted(
            build, task=self.name, length=length, tokenizer=tokenizer, remedy=f", or {self.name}:example=false"
        )

    def _example(self, rng: random.Random, value: int) -> str:
        """A solved text with names of three letters."""
        chain = names(rng, self.hops + 1, letters=3)
        places = sorted(rng.random() for _ in chain)
        noise = garbage_lines(NOISE_WORDS_PER_LINE * len(chain))
        text, _ = insert(noise, list(zip(places, assignments(chain, value), strict=True)), "\n")
        asked = QUESTION.format(value=value) + PREFIX.format(value=value, count=len(chain))
        return f"{INSTRUCTION}{text}{asked} {' '.join(chain)}\n\n"
