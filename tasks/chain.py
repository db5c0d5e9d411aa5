"""Walk along links: every step of a long answer needs another page of the text, so decoding itself is what is tested.

    instruction / prose / "stop 417086 -> 205714" / prose / "stop 930122 -> 417086" / ... / "next 32 stops after 930122"

Each stop has one successor; the links stand in random order, and the answer is the whole walk, one number after the
other. A method that drops entries while it decodes loses links it will need later; one that selects must find a new
place at every step. The score is the share of the walk that is right from its beginning: after the first wrong stop
nothing counts. Stops differ from each other in at least two of six digits, because the last one is a check digit.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar

from questbench.errors import UsageError
from questbench.tasks._base import Sample, Task, Tokenizer
from questbench.tasks._haystack import answer_room, fitted, insert, shifted
from questbench.tasks._prose import Sentences
from questbench.tasks._records import checked

INSTRUCTION = (
    "The text below holds links. Each link is one line and leads from a stop to the next one. "
    "Remember the links: I will ask for a walk along them.\n"
)
LINK = "stop {stop} -> {following}"
QUESTION = "\nStart at stop {stop} and list the next {steps} stops in order.\n"
PREFIX = "stop {stop} ->"
ARROW = " -> "
MOST_LINKS, MOST_STEPS = 4000, 256


@dataclass(frozen=True)
class Chain(Task):
    """A walk along some of the links of a text, which form one circle."""

    steps: int = 32
    """Stops that the answer lists."""
    links: int = 64
    """Links in the text, at least as many as steps."""

    metric: ClassVar[str] = "right prefix"
    max_new_tokens: ClassVar[int] = 320
    """Each sample says how many its own walk takes."""
    binary: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse walks longer than the links reach."""
        if not (1 <= self.steps <= min(self.links, MOST_STEPS) and 2 <= self.links <= MOST_LINKS):
            raise UsageError(
                f"chain cannot walk {self.steps} steps over {self.links} links.",
                f"Use --task chain:steps=32:links=64 (1 to {MOST_STEPS} steps, as many links or more).",
            )

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """A walk along a circle of all stops, so that no link looks like a first or a last one."""
        stops = [checked(prefix) for prefix in rng.sample(range(10_000, 100_000), self.links)]
        pairs = list(zip(stops, [*stops[1:], stops[0]], strict=True))
        walk = [following for _, following in pairs[: self.steps]]
        order = rng.sample(range(self.links), self.links)
        place = {link: (rank + 0.5) / self.links for rank, link in enumerate(order)}
        pieces = [
            (place[link], LINK.format(stop=stop, following=following)) for link, (stop, following) in enumerate(pairs)
        ]
        answer = ARROW.join(map(str, walk))
        prose = Sentences(rng)

        def build(words: int) -> Sample:
            text, spans = insert(prose.cut(words), pieces, "\n")
            return Sample(
                id=f"{self.name}-{index:04d}",
                context=INSTRUCTION + text,
                question=QUESTION.format(stop=stops[0], steps=self.steps),
                answer_prefix=PREFIX.format(stop=stops[0]),
                answers=(answer,),
                needles=shifted(spans[: self.steps], len(INSTRUCTION)),
                needles_needed="all",
                meta={"steps": self.steps, "links": self.links, "start": stops[0]},
                max_new_tokens=answer_room(tokenizer, answer, least=4 * self.steps),
            )

        return fitted(build, task=self.name, length=length, tokenizer=tokenizer, remedy=", or fewer links")

    def score(self, sample: Sample, completion: str) -> float:
        """Share of the walk's stops that are right before the first wrong one."""
        listed, walk = re.findall(r"\d+", completion), sample.answers[0].split(ARROW)
        right = next((at for at, stop in enumerate(walk) if at >= len(listed) or listed[at] != stop), len(walk))
        return right / len(walk)
