"""Perplexity on a self-made book: what is told of people early comes again late, where the loss of forgetting it shows.

The book's last ``share`` is predicted token by token with the method active, behind a dense prefill of the rest
(protocol ``stream``; the Quest paper's Fig. 6 decodes a whole book from its first token, https://arxiv.org/abs/2406.10774).
Reported over the tokens behind the largest budget only, because up to there every method is dense; also per window, in
bits per byte, and over the repeated facts alone (``recalls``). The grammar's own entropy is in every figure: perplexity
here compares methods on one model, never with that on another text.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from questbench.errors import UsageError
from questbench.tasks._base import Sample, StreamTask, Tokenizer
from questbench.tasks._book import Book
from questbench.tasks._haystack import fitted, tokens

CAST = 0.4
"""About this share of a book is about its cast, twelve tellings and three scenes a head; the rest is filler."""


@dataclass(frozen=True)
class Perplexity(StreamTask):
    """A book by our own grammar, two fifths of it about its cast."""

    share: float = 0.25
    """Share of the book that is predicted with the method active."""

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing to prefill or nothing to predict."""
        if not 0.01 <= self.share <= 0.99:
            raise UsageError(f"ppl cannot score {self.share} of a text.", "Use --task ppl:share=0.25 (0.01 to 0.99).")

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """A book of its own for every index."""
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
