"""Prose by grammar: an endless stream of plain sentences, hardly ever two alike, without numbers or names."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from questbench.tasks._words import ADJECTIVES, article

_PEOPLE = """
baker butcher captain carpenter child clerk cook cousin dancer daughter doctor driver farmer fisherman gardener girl
grandfather grandmother guest guide hunter innkeeper judge lawyer librarian mayor merchant messenger miller miner
musician neighbor nurse painter passenger pilot poet porter postman potter pupil sailor shepherd shoemaker singer sister
smith soldier stranger student tailor teacher traveler uncle visitor waiter watchman weaver widow woodcutter
""".split()
_THINGS = """
apron basket bell bench blanket boat book bottle bowl box bridge broom bucket candle carpet cart chair clock cloak coat
coin compass cup curtain door drum fence fiddle flag flute gate glove hammer harp hat jacket jar jug kettle kite knife
ladder lamp lantern letter map mirror needle net painting parcel pillow pipe plate plough pot quilt ribbon ring rope
rug saddle sail scarf shawl shoe shovel spoon stove sweater table tent ticket trumpet umbrella vase violin wagon wheel
whistle window
""".split()
_DID_TO = """
admired borrowed bought broke brought carried chose cleaned covered described dropped examined fetched finished fixed
forgot found guarded hid kept lent lifted lost measured mended missed moved noticed opened ordered packed painted
pointed at polished praised pulled pushed remembered repaired returned searched for sold stole studied threw away took
touched traded washed watched wrapped
""".split()
_DID = """
arrived argued danced disappeared dreamed fell asleep grew tired hesitated knelt laughed left lingered listened nodded
paused prayed rested sang shivered sighed sat down slept smiled stood still stopped stumbled thought for a while waited
walked about wandered wept whispered whistled woke up worked yawned
""".split()
_PLACES = (
    """
above the valley|across the square|along the canal|among the reeds|at the crossroads|at the edge of the forest|at the
far end of the pier|at the foot of the hill|at the market|behind the chapel|behind the stable|below the dam|beside the
fire|beside the mill|between two hedges|beyond the orchard|by the harbor wall|by the open window|down by the river|from
the top of the tower|in a quiet street|in front of the inn|in the attic|in the cellar|in the courtyard|in the empty
hall|in the garden|in the kitchen|in the old quarry|in the school yard|in the shade of an elm|in the tall grass|inside
the barn|near the lighthouse|near the station|next to the bakery|on a wooden bench|on the bank of the stream|on the
ferry|on the narrow stairs|on the north side of the island|on the roof|on the village green|outside the library|over the
bridge|past the last houses|under a bright moon|under the arches|under the kitchen table|up in the mountains|upon a flat
rock|where the two roads meet|within sight of the sea
""".replace("\n", " ")
    .strip()
    .split("|")
)
_TIMES = (
    """
after a long silence|after breakfast|after the first snow|after the rain had stopped|all through the winter|as soon as
the bell rang|at dawn|at midnight|at noon|at the end of the week|before anyone was awake|before supper|by the time the
lamps were lit|during the harvest|early in spring|every now and then|for the first time in years|in the heat of the
afternoon|in those days|just before closing time|late in the evening|more than once|not long ago|on a cold morning|on
market day|once again|one autumn night|sooner or later|that same evening|the next day|to everyone's surprise|towards the
end of summer|when nobody was looking|when the fog lifted|when the tide was low|while the others were away|without a
word|years later
""".replace("\n", " ")
    .strip()
    .split("|")
)
_REASONS = (
    """
because the road was closed|because there was nothing else to do|because it had begun to rain|but nobody seemed to
mind|but the door stayed shut|although it was getting dark|although the wind had turned|and then went home|and never
spoke of it again|and that was the end of the matter|as if nothing had happened|for reasons of their own|in spite of the
weather|in the hope of better days|just to be sure|so that the children could sleep|so the work had to wait|until the
candle burned down|until the music stopped|which surprised no one|while the kettle boiled|with great care|with some help
from the neighbors|without making a sound
""".replace("\n", " ")
    .strip()
    .split("|")
)


def _phrases(text: Sequence[str], joined: Sequence[str]) -> list[str]:
    """Single words, and those pairs of words that belong together."""
    merged = " ".join(text)
    for phrase in joined:
        merged = merged.replace(phrase, phrase.replace(" ", "_"))
    return [word.replace("_", " ") for word in merged.split()]


_TRANSITIVE = _phrases(_DID_TO, ("pointed at", "searched for", "threw away"))
_INTRANSITIVE = _phrases(
    _DID,
    ("fell asleep", "grew tired", "sat down", "stood still", "thought for a while", "walked about", "woke up"),
)


def _person(rng: random.Random) -> str:
    who = rng.choice(_PEOPLE)
    if rng.random() < 0.5:
        who = f"{rng.choice(ADJECTIVES)} {who}"
    return f"the {who}" if rng.random() < 0.6 else article(who)


def _thing(rng: random.Random) -> str:
    what = rng.choice(_THINGS)
    if rng.random() < 0.6:
        what = f"{rng.choice(ADJECTIVES)} {what}"
    return rng.choice((f"the {what}", article(what), f"another {what}", f"every {what}"))


def _acted(rng: random.Random) -> str:
    return f"{_person(rng)} {rng.choice(_TRANSITIVE)} {_thing(rng)} {rng.choice(_PLACES)}"


def _moved(rng: random.Random) -> str:
    return f"{_person(rng)} {rng.choice(_INTRANSITIVE)} {rng.choice(_PLACES)}"


_SHAPES: tuple[Callable[[random.Random], str], ...] = (
    lambda rng: _acted(rng),
    lambda rng: f"{rng.choice(_TIMES)}, {_acted(rng)}",
    lambda rng: f"{_acted(rng)}, {rng.choice(_REASONS)}",
    lambda rng: f"{rng.choice(_TIMES)}, {_moved(rng)}",
    lambda rng: f"{_moved(rng)}, {rng.choice(_REASONS)}",
    lambda rng: (
        f"{_person(rng)} {rng.choice(_TRANSITIVE)} {_thing(rng)}, and {_person(rng)} {rng.choice(_INTRANSITIVE)}"
    ),
    lambda rng: f"there was {article(rng.choice(ADJECTIVES) + ' ' + rng.choice(_THINGS))} {rng.choice(_PLACES)}",
    lambda rng: f"{rng.choice(_PLACES)}, {_person(rng)} {rng.choice(_TRANSITIVE)} {_thing(rng)}",
    lambda rng: f"nobody knew why {_person(rng)} {rng.choice(_TRANSITIVE)} {_thing(rng)}",
    lambda rng: f"it was said that {_person(rng)} once {rng.choice(_TRANSITIVE)} {_thing(rng)} {rng.choice(_PLACES)}",
)


def sentence(rng: random.Random) -> str:
    """One sentence, capitalised, with its full stop."""
    text = rng.choice(_SHAPES)(rng)
    return text[0].upper() + text[1:] + "."


def scene(rng: random.Random, who: str) -> str:
    """One sentence about somebody with a name."""
    if rng.random() < 0.5:
        return f"{who} {rng.choice(_INTRANSITIVE)} {rng.choice(_PLACES)}."
    return f"{who} {rng.choice(_TRANSITIVE)} {_thing(rng)} {rng.choice(_PLACES)}."


class Sentences:
    """An endless text, cut at any word.

    Args:
        rng: decides the text; one number is drawn from it, however much is read.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = random.Random(rng.getrandbits(64))
        self._made: list[str] = []
        self._words = 0

    def cut(self, words: int) -> list[str]:
        """The first ``words`` words as sentences; the last one may be broken off."""
        while self._words < words:
            self._made.append(sentence(self._rng))
            self._words += self._made[-1].count(" ") + 1
        taken, left = [], words
        for text in self._made:
            if left <= 0:
                break
            parts = text.split(" ")
            taken.append(text if len(parts) <= left else " ".join(parts[:left]))
            left -= len(parts)
        return taken
