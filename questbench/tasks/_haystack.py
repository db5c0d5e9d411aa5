"""What generated tasks share: filler of a wanted length in any tokenizer's tokens, and depths that spread evenly."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from questbench.errors import UsageError
from questbench.tasks._base import Tokenizer

SHORTEST = 0.95
"""A prompt reaches at least this share of the length that was asked for."""

GARBAGE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.".split()
"""The filler of the pass key prompt, word by word."""

PROSE = tuple(
    sentence.strip() + "."
    for sentence in """
The old road follows the river to the village. A cold wind came from the sea in the night. Two women carry bread and
milk to the market. The teacher reads a long story to the class. Snow still lies on the dark side of the mountain. My
brother wants to build a small boat. They closed the shop early and went home. Birds return to the valley when spring
begins. The kitchen smells of coffee and warm bread. Nobody knows who left the door open. The train stopped in a field
for half an hour. Her friends sing while they wash the dishes. A young soldier writes a letter to his mother. The king
gave the land to the people. Children run across the wet grass. We heard music from the house across the street. The
lake was quiet and the moon was bright. An old man sells apple trees near the station. The horse would not cross the
water. She found the picture under a heavy book. After the rain the air felt clear and fresh. The doctor listened and
said very little. Some students stay in the city all summer. The fire went out before morning.
""".replace("\n", " ").split(".")
    if sentence.strip()
)
"""Plain sentences without numbers, for filler that does not repeat with a period."""

_GOLDEN = (math.sqrt(5) - 1) / 2


def depth(index: int) -> float:
    """Relative depth of sample ``index`` in [0, 1): multiples of the golden ratio, evenly spread in every prefix."""
    return (0.5 + index * _GOLDEN) % 1.0


def garbage(words: int) -> str:
    """The first ``words`` words of endlessly repeated garbage."""
    rounds, rest = divmod(words, len(GARBAGE))
    return " ".join(GARBAGE * rounds + GARBAGE[:rest])


class Prose:
    """An endless stream of sentences in random order, word by word.

    Args:
        rng: decides the order; one number is drawn from it, however much is read.
    """

    def __init__(self, rng: random.Random) -> None:
        self._order = random.Random(rng.getrandbits(64))
        self._words: list[str] = []

    def words(self, count: int) -> Sequence[str]:
        """The first ``count`` words."""
        while len(self._words) < count:
            self._words += self._order.choice(PROSE).split()
        return self._words[:count]


def tokens(tokenizer: Tokenizer, text: str) -> int:
    """Tokens of a whole prompt, special ones included."""
    return len(tokenizer.encode(text))


def fit(count: Callable[[int], int], length: int, most: int | None = None) -> int:
    """The most units of filler with which a prompt stays within ``length`` tokens.

    Interpolates between a number that fits and one that does not; every answer is counted, never estimated. Stops
    one token short of the length, or when no number lies in between. Where ``count`` is not monotone the answer still
    fits, though a larger one might too.

    Args:
        count: units -> tokens of the whole prompt.
        length: tokens of the prompt, at most.
        most: never more units than this.

    Returns:
        Units, or -1 if the prompt is too long without any.
    """
    low, at_low = 0, count(0)
    if at_low > length:
        return -1
    high = max(length, 1) if most is None else min(max(length, 1), most)
    while (at_high := count(high)) <= length:
        low, at_low = high, at_high
        if high == most or high > 64 * max(length, 1):  # 64 units of filler in one token: more of it will not help
            return high
        high = 2 * high if most is None else min(2 * high, most)
    halve = False
    while high - low > 1 and at_low < length - 1:
        share = 0.5 if halve else (length - at_low) / (at_high - at_low)
        middle = min(max(low + int((high - low) * share), low + 1), high - 1)
        before = high - low
        if (at_middle := count(middle)) <= length:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
        halve = high - low > before // 2
    return low


def check_length(task: str, reached: int, length: int, least: int, remedy: str = "") -> None:
    """Raise UsageError unless a prompt of ``reached`` tokens fills ``length`` well enough.

    Args:
        task: name, for the message.
        reached: tokens of the prompt that was made.
        length: tokens that were asked for.
        least: tokens of the shortest prompt.
        remedy: another way out than a longer text.
    """
    if not SHORTEST * length <= reached <= length:
        raise UsageError(
            f"{task} cannot fill {length:,} tokens: with this tokenizer it needs {least:,} or more.",
            f"Use --seq-len {least} or more{remedy}.",
        )
