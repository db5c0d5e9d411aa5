"""Tokenizer of the trained embedded model: byte-level BPE over listed pieces, lossless for any text.

Numbers fall into groups of at most three digits from the left, a number keeps the space before it, and runs of capitals
(names of variables) fall into pairs: what the tasks ask for has the same few tokens wherever it stands. Everything else
is a listed word, or fragments and bytes. A record's key, its value and a variable's name are two to three tokens each,
so that only their combination is unique.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from questbench.models.constructed import tokenizer
from questbench.models.constructed.vocabulary import COMMON, CUE_MARKS, CUES, MARKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

PIECES = r"\n| ?VAR(?!\p{L})| ?[A-Z]{2}(?!\p{Ll})| ?[0-9]{1,3}| ?\p{L}+| ?[^\s\p{L}0-9]+|[^\S\n]+(?!\S)|[^\S\n]+"
"""A newline; the word VAR; a pair of capitals; a number group; a word; marks; white space."""


def whole_pieces() -> list[str]:
    """Pieces that are one token, as text: with and without the space before them."""
    digits = [f"{number:0{width}d}" for width in (1, 2, 3) for number in range(10**width)]
    capitals = [*LETTERS, *(first + second for first in LETTERS for second in LETTERS), "VAR"]
    words = [form for word in (*CUES, *COMMON) for form in (word, word.capitalize())]
    bare = [*digits, *capitals, *words, *CUE_MARKS, *MARKS]
    return [form for text in bare for form in (text, " " + text)]


def task_words() -> list[str]:
    """Words and names of the tasks' own prose, book and keys, spaced.

    A list that is fixed: a task that gains a word later must not shift the ids of a model that is trained. Words that
    are not in it are fragments and bytes.
    """
    return [
        " " + word
        for word in Path(__file__).with_name("needle_words.txt").read_text(encoding="utf-8").split("\n")
        if word
    ]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A stock ``PreTrainedTokenizerFast`` that prepends BOS."""
    return tokenizer.build_tokenizer([*whole_pieces(), *task_words()], PIECES, name="needle")
