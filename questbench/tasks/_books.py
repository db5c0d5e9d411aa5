"""Perplexity on books: windows of real texts, the last part of each predicted token by token.

A window is ``length`` tokens in a row, cut at words. Sample i is the first window of book i; where there are fewer
books than samples the second windows follow, and so on, so that a few samples are spread over as many books as there
are. Windows do not overlap. The tokenizer's BOS stands in front of each, as it did when the model was trained and as
lm-eval's rolling log-likelihood has it.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar, cast

from questbench.errors import UsageError
from questbench.tasks._base import Sample, StreamTask, Tokenizer
from questbench.tasks._data import DataTask
from questbench.tasks._data_schema import FULL_TEXT, Schema
from questbench.tasks._haystack import fit, tokens

CHARS_PER_TOKEN = 64
"""More than any tokenizer's average over a text; only so much of a book is looked at."""
USUAL = 5
"""Characters of an English token, to guess how many windows a book has."""
TEXTS = ("*.txt", "**/*.txt", "*.md", "**/*.md")


@dataclass(frozen=True)
class BookTask(StreamTask, DataTask):
    """Texts that nobody's generator wrote: files of .txt or .md, or rows with a column ``text``."""

    share: float = 0.25
    """Share of a window that is predicted with the method active."""

    default_samples: ClassVar[int] = 4

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing to prefill or nothing to predict."""
        if not 0.01 <= self.share <= 0.99:
            raise UsageError(
                f"{self.name} cannot score {self.share} of a text.",
                f"Use --task {self.name}:share=0.25 (0.01 to 0.99).",
            )

    def schemas(self) -> tuple[Schema, ...]:
        """A text per row; its title where there is one."""
        return (Schema("texts", {"text": FULL_TEXT}),)

    def samples(self, asked: int | None, length: int) -> int:
        """Windows of all books; by default a few of them.

        Raises:
            UsageError: there cannot be as many as asked for.
            PrerequisiteError: the data is missing or broken.
        """
        table = self.table(length)
        wanted = asked or self.default_samples
        chars = 1 if asked else USUAL  # what is asked for is refused only where it cannot be had
        found = 0
        for index in range(len(table)):
            found += max(1, len(table[index]["text"]) // (chars * length))
            if found >= wanted:
                return wanted
        if asked:
            raise UsageError(
                f"{self.label} has at most {found:,} windows of {length:,} tokens in {table.name}, not {asked:,}.",
                f"Use --samples {found} or fewer, or a shorter --seq-len.",
            )
        return found

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """Window ``index``, counted over the books first."""
        del rng
        table = self.table(length)
        number, book = divmod(index, len(table))
        row, origin = self.row(book, length)
        whole = row["text"]
        start, end = _border(whole, number, length, tokenizer), _border(whole, number + 1, length, tokenizer)
        start += len(whole[start:end]) - len(whole[start:end].lstrip()) if number else 0
        if tokens(tokenizer, whole[start:end]) > length:  # without the white space in front
            end = _word_end(whole, start + fit(lambda chars: tokens(tokenizer, whole[start : start + chars]), length))
        text = whole[start:end]
        reached = tokens(tokenizer, text)
        if reached < 0.95 * length:
            where = f"window {number} of " if number else ""
            raise UsageError(
                f"{self.name}: {where}book {book} of {origin['data']['file']} has only {reached:,} tokens.",
                f"Use --samples {index} or fewer, or a shorter --seq-len."
                if number
                else f"Use --seq-len {reached} or less{f', or --samples {index}' if index else ''}.",
            )
        cut = self.border(text, reached, tokenizer)
        if not 0 < cut < len(text):
            raise UsageError(
                f"{self.name}: the {reached:,} tokens of book {book} have no two words.", "Use a longer --seq-len."
            )
        return Sample(
            id=f"{self.name}-{index:04d}",
            context=text[:cut],
            question=text[cut:],
            answers=("",),
            meta={
                "title": str(row.get("short_book_title") or row.get("title") or book),
                "tokens": reached,
                "bytes": len(text.encode()),
                "truncation": "none" if not number and end == len(whole) else "window" if number else "end",
                "book_chars": len(whole),
                **({"first_char": start} if number else {}),
                **origin,
            },
        )

    def border(self, text: str, reached: int, tokenizer: Tokenizer) -> int:
        """The character at which prediction starts in a text of ``reached`` tokens."""
        del reached, tokenizer
        return _word_end(text, round(len(text) * (1 - self.share)))


def first_words(text: str, length: int, tokenizer: Tokenizer) -> int:
    """The word's end up to which a text has ``length`` tokens, or the end of the text."""
    most = min(len(text), CHARS_PER_TOKEN * length)
    end = fit(lambda chars: tokens(tokenizer, text[:chars]), length, most)
    return end if end == len(text) else _word_end(text, max(end, 0))


def _border(text: str, windows: int, length: int, tokenizer: Tokenizer) -> int:
    """Where so many windows end, each counted from the end of the one before it."""
    ends = _known_borders(text, length, cast(Hashable, tokenizer))
    while len(ends) <= windows:
        ends.append(ends[-1] + first_words(text[ends[-1] :], length, tokenizer))
    return ends[windows]


@functools.lru_cache(maxsize=16)
def _known_borders(text: str, length: int, tokenizer: Hashable) -> list[int]:
    """The borders of a text that anyone has asked for; more are found behind them."""
    del text, length, tokenizer
    return [0]


def _word_end(text: str, end: int) -> int:
    """The last place at or before ``end`` where white space follows a word; the first such place if there is none."""
    for place in range(min(end, len(text) - 1), 0, -1):
        if text[place].isspace() and not text[place - 1].isspace():
            return place
    return next((i for i in range(1, len(text)) if text[i].isspace() and not text[i - 1].isspace()), len(text))
