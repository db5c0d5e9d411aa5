"""Needs --data: perplexity on the books of PG-19's test set, the Quest paper's Fig. 6 (https://arxiv.org/abs/1911.05507).

Sample i is book i from its beginning, cut at a word to ``--seq-len`` tokens. Its last ``share`` is predicted token by
token with the method active, behind a dense prefill of the rest; ``prefill=N`` prefills N tokens instead, and
``prefill=0`` a single word, which is the paper's way: every token a decode step from an almost empty cache, over the
first book alone (``--samples 1``). The paper's number is then the perplexity over all tokens, most of which were
predicted while the text still fitted the budget; compare methods by the tokens behind the budget, which is what the
stream protocol reports.

Other books do as well: a file or a folder of .txt, or rows with a column ``text``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from questbench.errors import UsageError
from questbench.tasks._base import Sample, StreamTask, Tokenizer
from questbench.tasks._data import DataTask, Fetch
from questbench.tasks._data_schema import FULL_TEXT, Schema
from questbench.tasks._haystack import fit, tokens

CHARS_PER_TOKEN = 64
"""More than any tokenizer's average over a text; only so much of a book is looked at."""


@dataclass(frozen=True)
class PG19(StreamTask, DataTask):
    """Books that nobody's generator wrote."""

    share: float = 0.25
    """Share of the text that is predicted with the method active."""
    prefill: int | None = None
    """Tokens prefilled dense, instead of what ``share`` leaves."""

    default_length: ClassVar[int] = 32768
    default_samples: ClassVar[int] = 4

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing to prefill or nothing to predict."""
        if not 0.01 <= self.share <= 0.99:
            raise UsageError(f"pg19 cannot score {self.share} of a text.", "Use --task pg19:share=0.25 (0.01 to 0.99).")

    def fetch(self) -> Fetch:
        """The test set as parquet."""
        return Fetch(
            "the 100 books of PG-19's test set (40 MB of parquet)",
            "https://huggingface.co/datasets/emozilla/pg19-test/tree/main/data",
            "hf:emozilla/pg19-test",
        )

    def patterns(self, length: int) -> tuple[str, ...]:
        """The hub's parquet files, or texts."""
        del length
        return (
            *("data/test-*.parquet", "test-*.parquet", "test/*.parquet", "pg19*.parquet"),
            *("pg19.jsonl", "test.jsonl", "test/*.txt", "*.txt"),
        )

    def schemas(self) -> tuple[Schema, ...]:
        """A text per row; its title where there is one."""
        return (Schema("PG-19", {"text": FULL_TEXT}),)

    def sample(self, index: int, *, length: int, tokenizer: Tokenizer, rng: random.Random) -> Sample:
        """The beginning of book ``index``."""
        del rng
        row, origin = self.row(index, length)
        whole = row["text"]
        most = min(len(whole), CHARS_PER_TOKEN * length)
        end = fit(lambda chars: tokens(tokenizer, whole[:chars]), length, most)
        end = end if end == len(whole) else _word_end(whole, end)
        text = whole[:end]
        reached = tokens(tokenizer, text)
        if reached < 0.95 * length:
            raise UsageError(
                f"{self.name}: book {index} of {origin['data']['file']} has only {reached:,} tokens.",
                f"Use --seq-len {reached} or less{f', or --samples {index}' if index else ''}.",
            )
        if self.prefill is not None and self.prefill >= reached:
            raise UsageError(
                f"{self.name}: prefilling {self.prefill:,} of {reached:,} tokens leaves nothing to predict.",
                f"Use --task {self.name}:prefill={reached // 2}, or leave prefill out.",
            )
        if self.prefill is None:
            cut = _word_end(text, round(len(text) * (1 - self.share)))
        else:
            cut = _word_end(text, max(fit(lambda chars: tokens(tokenizer, text[:chars]), self.prefill, len(text)), 0))
        if not 0 < cut < len(text):
            raise UsageError(
                f"{self.name}: the {reached:,} tokens of book {index} have no two words.", "Use a longer --seq-len."
            )
        return Sample(
            id=f"{self.name}-{index:04d}",
            context=text[:cut],
            question=text[cut:],
            answers=("",),
            meta={
                "title": str(row.get("short_book_title") or row.get("title") or index),
                "tokens": reached,
                "bytes": len(text.encode()),
                "truncation": "none" if end == len(whole) else "end",
                "book_chars": len(whole),
                **origin,
            },
        )


def _word_end(text: str, end: int) -> int:
    """The last place at or before ``end`` where white space follows a word; the first such place if there is none."""
    for place in range(min(end, len(text) - 1), 0, -1):
        if text[place].isspace() and not text[place - 1].isspace():
            return place
    return next((i for i in range(1, len(text)) if text[i].isspace() and not text[i - 1].isspace()), len(text))
