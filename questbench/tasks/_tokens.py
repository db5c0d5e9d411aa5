"""Token ids of a prompt, or of its beginning: with what the tokenizer puts in front of it, never with what it appends.

Some tokenizers end every text with a special token (an end of text, a separator). A prompt is not at its end: an answer
or a continuation follows, and behind an end of text a model begins something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_PROBE = "a b"


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that something follows: special tokens in front of it, none behind it."""
    ids = list(tokenizer.encode(text))
    return ids[: len(ids) - appended(tokenizer)]


def part_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that stands inside a prompt: no special tokens but those that it spells itself."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def spanned(tokenizer: Any, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of :func:`prompt_ids`, or of :func:`part_ids`, with their characters; for fast tokenizers."""
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    kept = len(encoded["input_ids"]) - (appended(tokenizer) if special else 0)
    return list(encoded["input_ids"][:kept]), [tuple(span) for span in encoded["offset_mapping"][:kept]]


def is_fast(tokenizer: Any) -> bool:
    """Whether it says which characters a token stands for."""
    return bool(getattr(tokenizer, "is_fast", False)) and callable(tokenizer)


def spelled(tokenizer: Any, text: str) -> list[str]:
    """Special tokens that a text spells and that the tokenizer reads as such: an end of text within a text, say."""
    if getattr(tokenizer, "split_special_tokens", False):
        return []
    return [mark for mark in getattr(tokenizer, "all_special_tokens", ()) if mark and mark in text]


def appended(tokenizer: Any) -> int:
    """Special tokens that a tokenizer puts behind every text; looked up anew each time, for it can be changed."""
    whole: Sequence[int] = list(tokenizer.encode(_PROBE))
    bare: Sequence[int] = list(tokenizer.encode(_PROBE, add_special_tokens=False))
    # From the back: whatever could stand on either side is taken for a beginning, which is the common case.
    for start in range(len(whole) - len(bare), -1, -1):
        if whole[start : start + len(bare)] == bare:
            return len(whole) - start - len(bare)
    return 0
