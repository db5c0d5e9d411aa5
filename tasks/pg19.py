"""Needs --data: perplexity on the books of PG-19's test set, the Quest paper's Fig. 6 (https://arxiv.org/abs/1911.05507).

Sample i is book i from its beginning, cut at a word to ``--seq-len`` tokens; more samples than books take further
windows. The last ``share`` of a window is predicted token by token with the method active, behind a dense prefill of
the rest; ``prefill=N`` prefills N tokens instead, and ``prefill=0`` a single word, which is the paper's way: every
token a decode step from an almost empty cache, over the first book alone (``--samples 1``). The paper's number is
then the perplexity over all tokens, most of which were predicted while the text still fitted the budget; compare
methods by the tokens behind the budget, which is what the stream protocol reports.

``ppl --data`` reads other books in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from questbench.errors import UsageError
from questbench.tasks._base import Tokenizer
from questbench.tasks._books import TEXTS, BookTask, first_words
from questbench.tasks._data import Fetch


@dataclass(frozen=True)
class PG19(BookTask):
    """Books published before 1919."""

    prefill: int | None = None
    """Tokens prefilled dense, instead of what ``share`` leaves."""

    default_length: ClassVar[int] = 32768

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
            *("pg19.jsonl", "test.jsonl", "test/*.txt", *TEXTS),
        )

    def border(self, text: str, reached: int, tokenizer: Tokenizer) -> int:
        """Behind ``prefill`` tokens, where they are given."""
        if self.prefill is None:
            return super().border(text, reached, tokenizer)
        if self.prefill >= reached:
            raise UsageError(
                f"{self.name}: prefilling {self.prefill:,} of {reached:,} tokens leaves nothing to predict.",
                f"Use --task {self.name}:prefill={reached // 2}, or leave prefill out.",
            )
        return first_words(text, self.prefill, tokenizer)
