"""What generated tasks share: filler of a wanted length in any tokenizer's tokens, and depths that spread evenly."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from questbench.errors import UsageError
from questbench.tasks._base import Sample, Tokenizer
from questbench.tasks._tokens import part_ids, prompt_ids

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


def garbage_lines(words: int) -> list[str]:
    """The first ``words`` words of garbage in lines of its five sentences; the last one may be broken off."""
    return [garbage(min(len(GARBAGE), words - start)) for start in range(0, words, len(GARBAGE))]


def insert(units: Sequence[str], pieces: Sequence[tuple[float, str]], joiner: str) -> tuple[str, list[tuple[int, int]]]:
    """Put pieces of text between units of filler.

    Args:
        units: sentences or lines.
        pieces: (relative depth 0 to 1, text); pieces that fall into the same gap stand in the order given.
        joiner: stands between any two.

    Returns:
        The text, and the character span of every piece in the order given.
    """
    order = sorted(range(len(pieces)), key=lambda at: round(pieces[at][0] * len(units)))
    parts: list[str] = []
    spans = [(0, 0)] * len(pieces)
    length = used = 0
    for at in order:
        gap = round(pieces[at][0] * len(units))
        for text in units[used:gap]:
            parts.append(text)
            length += len(text) + len(joiner)
        used = gap
        text = pieces[at][1]
        parts.append(text)
        spans[at] = (length, length + len(text))
        length += len(text) + len(joiner)
    return joiner.join([*parts, *units[used:]]), spans


def shifted(spans: Sequence[tuple[int, int]], by: int) -> tuple[tuple[int, int], ...]:
    """Spans of a text that now starts ``by`` characters later."""
    return tuple((start + by, end + by) for start, end in spans)


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


def tokens(tokenizer: Tokenizer, text: str, answer_prefix: str = "") -> int:
    """Tokens of a whole prompt, with the special ones in front of it and the chat template around it.

    Args:
        text: context and question.
        answer_prefix: behind them, or behind the template's header of the answer.
    """
    framed = getattr(tokenizer, "framed", None)
    return len(framed(text, answer_prefix) if framed else prompt_ids(tokenizer, text + answer_prefix))


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


def fitted(
    build: Callable[[int], Sample],
    *,
    task: str,
    length: int,
    tokenizer: Tokenizer,
    remedy: str = "",
) -> Sample:
    """The longest sample within ``length`` tokens, its count in ``meta["tokens"]``.

    Args:
        build: units of filler -> sample; always the same sample for the same number.
        task: name, for messages.
        length: tokens of the prompt, at most.
        tokenizer: counts them.
        remedy: another way out than a longer text, for the message.

    Raises:
        UsageError: 95 % of the length cannot be reached, or the tokenizer cannot write the answer.
    """

    def count(units: int) -> int:
        sample = build(units)
        return tokens(tokenizer, sample.context + sample.question, sample.answer_prefix)

    units = max(fit(count, length), 0)
    reached = count(units)
    check_length(task, reached, length, least=count(0), remedy=remedy)
    sample = build(units)
    check_expressible(task, tokenizer, sample.answers[0])
    return replace(sample, meta={**sample.meta, "tokens": reached})


def check_expressible(task: str, tokenizer: Tokenizer, answer: str) -> None:
    """Raise UsageError if a model with this tokenizer could not write the answer: a part of it is an unknown token."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in part_ids(tokenizer, answer):
        raise UsageError(
            f"{task} cannot be answered with this tokenizer: it has no tokens for '{answer[:40]}'.",
            "Use a model whose tokenizer writes any text, such as one of byte-level BPE.",
        )


def answer_room(tokenizer: Tokenizer, answer: str, least: int) -> int:
    """Tokens to generate: ``least``, or what this tokenizer needs for the answer and a little more."""
    return max(least, len(part_ids(tokenizer, " " + answer)) + 4)
