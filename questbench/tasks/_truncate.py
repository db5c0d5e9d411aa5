"""Cut a prompt to a number of tokens out of its middle, as LongBench does: instructions stand at both ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from questbench.tasks._base import Tokenizer
from questbench.tasks._haystack import fit, tokens
from questbench.tasks._tokens import is_fast, part_ids, spanned


@dataclass(frozen=True)
class Cut:
    """A text without its middle: ``text[:head] + text[tail:]``; all of it where both are 0."""

    head: int
    tail: int
    before: int
    """Tokens of the whole text."""
    tokens: int
    """Tokens of what is left, counted on the joined text."""
    half: int | None
    """Tokens kept at each end; ``None`` where nothing was cut, 0 where nothing could be kept."""

    def meta(self) -> dict[str, Any]:
        """The rule and what it did, for ``Sample.meta``."""
        rule = "none" if self.half is None else "middle"
        kept = {} if self.half is None else {"kept_at_each_end": self.half}
        return {"truncation": rule, "full_tokens": self.before, "tokens": self.tokens, **kept}


def middle(text: str, length: int, tokenizer: Tokenizer) -> Cut:
    """Keep the first and the last ``length // 2`` tokens of a text that is longer than ``length`` tokens.

    LongBench decodes the two halves and joins them, and the join may have a few tokens more. Here the halves are cut
    out of the text itself at the borders of those tokens, which is the same text wherever the tokenizer is lossless,
    and they shrink until the joined text has at most ``length`` tokens.

    Args:
        length: 1 or more; special tokens that the tokenizer adds count, as they do in LongBench. A chat template
            counts once: the two halves share what it leaves of the length.
    """
    bare = getattr(tokenizer, "bare", tokenizer)
    framed = bare is not tokenizer
    spans = spanned(bare, text, special=not framed)[1] if is_fast(bare) else None
    before = tokens(tokenizer, text) if framed or spans is None else len(spans)
    if before <= length:
        return Cut(0, 0, before, before, None)

    def count(part: str) -> int:
        return len(part_ids(bare, part)) if framed else tokens(tokenizer, part)

    half = (length - tokens(tokenizer, "") if framed else length) // 2
    while half > 0:
        head, tail = _ends(text, half, count) if spans is None else _ends_by_spans(spans, half)
        if (reached := tokens(tokenizer, text[:head] + text[tail:])) <= length:
            return Cut(head, tail, before, reached, half)
        half -= max(1, (reached - length) // 2)
    return Cut(0, len(text), before, tokens(tokenizer, ""), 0)


def _ends_by_spans(spans: Sequence[tuple[int, int]], half: int) -> tuple[int, int]:
    """Where the first ``half`` tokens end and the last ``half`` begin."""
    head = max(end for _, end in spans[:half])
    tail = min((start for start, end in spans[-half:] if end > start), default=spans[-half][1])
    return head, max(head, tail)


def _ends(text: str, half: int, count: Callable[[str], int]) -> tuple[int, int]:
    """The same by counting: the longest start and the longest end of at most ``half`` tokens each."""
    head = max(fit(lambda chars: count(text[:chars]), half, len(text)), 0)
    tail = max(fit(lambda chars: count(text[len(text) - chars :]), half, len(text)), 0)
    return head, max(head, len(text) - tail)
