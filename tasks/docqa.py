"""Questions about self-made passages in LongBench's form: a fact in prose, a question worded differently, scored by F1.

    instruction / "Passage 1" / portrait of somebody invented / "Passage 2" / ... / "Question: ... Answer:"

Each passage is about one person and tells a handful of facts between other sentences; one fact of one person is asked
for. Nobody exists, so nothing can be known beforehand. ``row`` gives a sample as a row of LongBench's files
(https://arxiv.org/abs/2308.14508), whose F1 is the score, so that loaders and metrics of the real sets can be tried
without a download. Names and wording are our own: results are no LongBench results.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from questbench import units
from questbench.errors import UsageError
from questbench.tasks._base import Sample, Task, Tokenizer
from questbench.tasks._book import KEEPSAKES, MATERIALS, TRADES, full_names
from questbench.tasks._haystack import answer_room, depth, fitted, insert, shifted, tokens
from questbench.tasks._metrics_text import qa_f1
from questbench.tasks._prose import Sentences
from questbench.tasks._words import ADJECTIVES, FIRST_NAMES, SURNAMES, TOWNS, article

INSTRUCTION = "Read the passages below and answer the question at the end in a few words.\n\n"
QUESTION, PREFIX = "\n\nQuestion: {question}\n", "Answer:"
_FEARED = """
badgers barrels bees bells boats bridges candles carts caves cellars chimneys clocks crows curtains dogs doors dragons
drums ducks eagles elevators ferries fires flutes foxes geese ghosts goats hammers hats horses kettles ladders lizards
masks mirrors moths needles owls pigeons rivers ropes scissors snails snakes spiders stairs storms swans thunderstorms
towers trains trumpets tunnels umbrellas wells wheels whistles windmills wolves
""".split()
_FOODS = """
apple asparagus barley bean beet bread cabbage carrot celery cheese chestnut chicken corn crab cucumber duck fennel fig
fish garlic ginger grape ham honey leek lemon lentil lobster mushroom mussel mustard noodle nut oat olive onion parsley
pea pear pepper plum potato pumpkin radish rice salmon sorrel spinach tomato trout turnip walnut wheat
""".split()
TOLD = 0.5
"""About this share of a text tells facts, if the number of passages is left open; the rest is other sentences."""


@dataclass(frozen=True)
class _Fact:
    draw: Callable[[random.Random], str]
    told: tuple[str, ...]
    """Sentences that tell it; ``{value}`` with its article as ``{a_value}``."""
    asked: str


FACTS: Mapping[str, _Fact] = {
    "trade": _Fact(
        lambda rng: f"{rng.choice(ADJECTIVES)} {rng.choice(TRADES)}",
        (
            "The parish register lists {name} as {a_value}.",
            "Ask anybody about {name} and you will hear of {a_value}.",
            "For most of a lifetime {name} has worked as {a_value}.",
        ),
        "What does {name} do for a living?",
    ),
    "home": _Fact(
        lambda rng: f"{rng.choice(TOWNS)} near {rng.choice(TOWNS)}",
        (
            "The childhood of {name} passed in {value}.",
            "It was in {value} that {name} learned to walk.",
            "{name} comes from a large family in {value}.",
        ),
        "Where did {name} grow up?",
    ),
    "keepsake": _Fact(
        lambda rng: f"{rng.choice(ADJECTIVES)} {rng.choice(MATERIALS)} {rng.choice(KEEPSAKES)}",
        (
            "The left pocket of the coat of {name} holds {a_value}.",
            "Wherever {name} goes, {a_value} goes along.",
            "Nobody has ever seen {name} without {a_value}.",
        ),
        "What does {name} always carry around?",
    ),
    "teacher": _Fact(
        lambda rng: f"{rng.choice(FIRST_NAMES)} {rng.choice(SURNAMES)}",
        (
            "It was {value} who first put a book into the hands of {name}.",
            "The letters of the alphabet {name} owes to {value}.",
            "{name} had the luck to sit in the classroom of {value}.",
        ),
        "Who taught {name} to read?",
    ),
    "fear": _Fact(
        lambda rng: (
            f"{rng.choice(ADJECTIVES)} {rng.choice(_FEARED)} and {rng.choice(ADJECTIVES)} {rng.choice(_FEARED)}"
        ),
        (
            "The mere thought of {value} makes {name} tremble.",
            "Only {value} can drive {name} out of a room.",
            "In bad dreams {name} meets {value}.",
        ),
        "What is {name} afraid of?",
    ),
    "dish": _Fact(
        lambda rng: f"{rng.choice(_FOODS)} soup with {rng.choice(ADJECTIVES)} {rng.choice(_FOODS)}",
        (
            "Every Sunday a plate of {value} waits for {name}.",
            "The cook knows that {name} wants nothing but {value}.",
            "For {value} {name} would leave any other table.",
        ),
        "What does {name} like to eat most?",
    ),
}


@dataclass(frozen=True)
class DocQA(Task):
    """One fact out of many passages."""

    passages: int | str = "auto"
    """Passages in the text; ``auto``: as many as half the text can hold."""

    metric: ClassVar[str] = "F1"
    max_new_tokens: ClassVar[int] = 32
    binary: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what is neither a number of passages nor ``auto``."""
        if isinstance(self.passages, str) and units.is_whole(self.passages):
            object.__setattr__(self, "passages", int(self.passages))
        valid = 1 <= self.passages <= len(SURNAMES) if isinstance(self.passages, int) else self.passages == "auto"
        if not valid:
            raise UsageError(
                f"docqa cannot have {self.passages} passages; it takes 1 to {len(SURNAMES)}, or auto.",
                "Use --task docqa or docqa:passages=20.",
            )

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """Asks about the passage at ``depth(index)`` of all passages."""
        count = self._count(length, tokenizer)
        names = full_names(rng, count)
        asked = int(depth(index) * count)
        values = [{kind: fact.draw(rng) for kind, fact in FACTS.items()} for _ in names]
        kind = rng.choice(list(FACTS))
        pieces, needle = [], 0
        for at, name in enumerate(names):
            kinds = rng.sample(list(FACTS), len(FACTS))
            pieces.append((at / count, f"Passage {at + 1}"))
            for rank, each in enumerate(kinds):
                if at == asked and each == kind:
                    needle = len(pieces)
                value = values[at][each]
                text = rng.choice(FACTS[each].told).format(name=name, value=value, a_value=article(value))
                pieces.append(((at + (rank + 0.5) / len(kinds)) / count, text))
        question = FACTS[kind].asked.format(name=names[asked])
        answer = values[asked][kind]
        prose = Sentences(rng)

        def build(words: int) -> Sample:
            text, spans = insert(prose.cut(words), pieces, "\n")
            return Sample(
                id=f"{self.name}-{index:04d}",
                context=INSTRUCTION + text,
                question=QUESTION.format(question=question),
                answer_prefix=PREFIX,
                answers=(answer,),
                needles=shifted([spans[needle]], len(INSTRUCTION)),
                meta={"depth": depth(index), "passages": count, "fact": kind, "input": question},
                max_new_tokens=answer_room(tokenizer, answer, least=self.max_new_tokens),
            )

        return fitted(build, task=self.name, length=length, tokenizer=tokenizer, remedy=", or fewer passages")

    def score(self, sample: Sample, completion: str) -> float:
        """The best F1 over the answers, of the completion's first line."""
        line = completion.strip().partition("\n")[0]
        return max(qa_f1(line, answer) for answer in sample.answers)

    @staticmethod
    def row(sample: Sample) -> dict[str, Any]:
        """A sample as a row of LongBench's files."""
        context = sample.context.removeprefix(INSTRUCTION)
        return {
            "input": sample.meta["input"],
            "context": context,
            "answers": list(sample.answers),
            "length": len(context.split()),
            "dataset": "docqa",
            "language": "en",
            "all_classes": None,
            "_id": sample.id,
        }

    def _count(self, length: int, tokenizer: Tokenizer) -> int:
        """Passages: those asked for, or as many as fill about half of the length in this tokenizer."""
        if isinstance(self.passages, int):
            return self.passages
        rng = random.Random(0)
        name = full_names(rng, 1)[0]
        told = []
        for fact in FACTS.values():
            value = fact.draw(rng)
            told += [text.format(name=name, value=value, a_value=article(value)) for text in fact.told]
        each = tokens(tokenizer, "\n".join(told)) * len(FACTS) / len(told)
        return min(max(int(TOLD * length / each), 1), len(SURNAMES))
