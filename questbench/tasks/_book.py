"""A self-made book: people are introduced early and what was said of them is repeated late, in the same clause.

Whoever reads "Marta Feldon always carried a" near the end knows how it goes on only from the beginning; a model that
forgot it pays for it in loss, and the characters at which it pays are known. Everything else is prose by grammar,
whose loss depends on the last few words only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from questbench.tasks._haystack import insert
from questbench.tasks._prose import Sentences, scene
from questbench.tasks._words import FIRST_NAMES, NOUNS, SURNAMES, TOWNS

TRADES = """
accountant actor architect baker barber beekeeper blacksmith bookbinder botanist brewer bricklayer butcher cabinetmaker
carpenter cartographer cheesemaker chemist clockmaker cobbler confectioner cooper dentist engraver farrier fisherman
florist furrier gardener gilder glassblower goldsmith hatter jeweler joiner judge lawyer librarian locksmith mason
miller milliner musician notary painter pharmacist plumber porter potter printer ropemaker saddler sculptor surgeon
surveyor tailor tanner teacher tinsmith translator typesetter upholsterer watchmaker weaver wheelwright
""".split()
MATERIALS = (
    "amber birch brass bronze clay copper coral cotton ebony felt glass golden horn iron ivory jade lead".split()
)
MATERIALS += (
    "leather linen marble oak paper pearl pewter silk silver slate steel stone straw tin walnut wax woolen".split()
)
KEEPSAKES = (
    "bell bowl box button chain coin comb compass cup dice fan figurine flute frame key knife lamp locket".split()
)
KEEPSAKES += "mask medal mirror needle pen pipe purse ring rod rule seal spoon star thimble token watch whistle".split()
_PETS = """
Acorn Barley Basil Biscuit Bramble Button Captain Cinder Clover Copper Domino Ember Fidget Ginger Hazel Juniper Maple
Marble Mischief Muffin Nettle Nimbus Nutmeg Pebble Pepper Pickle Poppy Rascal Ribbon Saffron Scout Shadow Smoky Snowball
Sorrel Sparrow Thistle Thunder Tinker Truffle Velvet Whisker Willow Ziggy
""".split()
_STREETS = "Alley Court Gate Hill Lane Place Road Row Square Street Walk Yard".split()

FACTS: Mapping[str, tuple[str, Callable[[random.Random], str]]] = {
    "home": ("came from", lambda rng: rng.choice(TOWNS)),
    "trade": ("earned a living as a trained", lambda rng: rng.choice(TRADES)),
    "keepsake": ("always carried a", lambda rng: f"{rng.choice(MATERIALS)} {rng.choice(KEEPSAKES)}"),
    "dog": ("had a dog called", lambda rng: rng.choice(_PETS)),
    "street": ("lived in", lambda rng: f"{rng.choice(NOUNS).capitalize()} {rng.choice(_STREETS)}"),
    "friend": ("was waiting for", lambda rng: f"{rng.choice(FIRST_NAMES)} {rng.choice(SURNAMES)}"),
}
"""What is told of everybody: how the clause goes on behind the name, and what ends it."""

_OPENINGS = (
    """
In the beginning|As the old people tell it|At the time of this story|From early on|In the first year
|Long before all this|On the day we met|When the story begins|It is true that|Let it be said that
|One should know that|To begin with
""".replace("\n", "")
    .strip()
    .split("|")
)
_REMINDERS = (
    """
As was told before|After all|As everybody remembered|Even now|It was no secret that|Nothing had changed:|Of course
|People still said that|Remember that|Still|Then as now|To this day|We have heard that|Years later it was still so that
""".replace("\n", "")
    .strip()
    .split("|")
)


@dataclass(frozen=True)
class Character:
    """Somebody with a name and one value for every fact."""

    name: str
    facts: Mapping[str, str]

    def clause(self, fact: str) -> str:
        """The clause that tells a fact; it ends with the value."""
        return f"{self.name} {FACTS[fact][0]} {self.facts[fact]}"


def full_names(rng: random.Random, count: int) -> list[str]:
    """Distinct names of people; surnames repeat only where there are more people than surnames."""
    surnames = rng.sample(SURNAMES, min(count, len(SURNAMES)))
    firsts = rng.sample(FIRST_NAMES, len(FIRST_NAMES))
    # A surname meets another first name on each round, so that no full name comes twice.
    return [f"{firsts[(at + at // len(surnames)) % len(firsts)]} {surnames[at % len(surnames)]}" for at in range(count)]


def cast(rng: random.Random, size: int) -> list[Character]:
    """People of different names."""
    names = full_names(rng, size)
    return [Character(name, {fact: draw(rng) for fact, (_, draw) in FACTS.items()}) for name in names]


def _told(lead: str, clause: str) -> str:
    """A sentence of a lead and a clause; the comma stands where the lead does not govern the clause."""
    return f"{lead} {clause}." if lead.endswith(("that", ":")) else f"{lead}, {clause}."


class Book:
    """A book of any length.

    Args:
        rng: decides everything; it is read before the length is known.
        people: size of the cast; each has ``len(FACTS)`` facts, told once early and repeated once late.
    """

    EARLY, LATE = (0.0, 0.4), (0.6, 1.0)
    """Shares of the filler between which facts are told, and repeated: at least a fifth of the book lies between."""

    def __init__(self, rng: random.Random, people: int) -> None:
        self.people = cast(rng, people)
        self.title = f"The {rng.choice(NOUNS)} of {rng.choice(TOWNS)}".title()
        self._prose = Sentences(rng)
        self._pieces: list[tuple[float, str]] = []
        self._values: list[str] = []
        """What ends the piece of the same number, if it repeats a fact; else empty."""
        for at, person in enumerate(self.people):
            place = self._between(self.EARLY, (at + 0.5) / people)
            for fact in rng.sample(list(FACTS), len(FACTS)):
                self._add(place, _told(rng.choice(_OPENINGS), person.clause(fact)))
            for _ in range(3):
                self._add(rng.random(), scene(rng, person.name))
        repeats = [(person, fact) for person in self.people for fact in FACTS]
        rng.shuffle(repeats)
        for at, (person, fact) in enumerate(repeats):
            place = self._between(self.LATE, (at + 0.5) / len(repeats))
            self._add(place, _told(rng.choice(_REMINDERS), person.clause(fact)), value=person.facts[fact])

    @staticmethod
    def _between(part: tuple[float, float], share: float) -> float:
        return part[0] + share * (part[1] - part[0])

    def _add(self, place: float, text: str, value: str = "") -> None:
        self._pieces.append((place, text))
        self._values.append(value)

    def text(self, words: int) -> tuple[str, list[tuple[int, int]]]:
        """The book with ``words`` words of filler, and the character spans of the repeated values in it, in order."""
        body, spans = insert(self._prose.cut(words), self._pieces, " ")
        head = self.title + "\n\n"
        recalls = [
            (len(head) + end - 1 - len(value), len(head) + end - 1)
            for (_, end), value in zip(spans, self._values, strict=True)
            if value
        ]
        return head + body, sorted(recalls)
