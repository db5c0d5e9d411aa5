"""Protocols: which tokens of a prompt are prefilled dense and which are fed one by one with the method active."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from questbench.errors import UsageError
from questbench.tasks._base import Sample

PROTOCOLS = {
    "stepwise": "context prefilled dense, then the question and the answer token by token with the method active",
    "prefill": "the prompt but its last token prefilled dense, then token by token with the method active",
    "quest-paper": "the last characters of the prompt (a number per task) fed token by token, as the paper's code does",
}


@dataclass(frozen=True)
class Prompt:
    """A tokenised sample: ``prefill`` goes through one dense forward, ``steps`` one token at a time."""

    prefill: tuple[int, ...]
    steps: tuple[int, ...]
    """At least one token: its logits give the first answer token. Under ``prefill`` the last token of the prompt."""
    needles: tuple[tuple[int, ...], ...]
    """Token positions of each mention of the answer in the evidence; any one is enough."""

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.prefill) + len(self.steps)


def split(sample: Sample, tokenizer: Any, protocol: str, last_chars: int) -> Prompt:
    """Tokenise a sample and split it by the protocol.

    The prompt is tokenised once and split in token space, so that no protocol changes the tokens; only ``quest-paper``
    tokenises the two parts apart, as the paper's code does (without its habit of dropping a token where the
    tokenizer adds no BOS).
    """
    text = sample.context + sample.question
    if protocol == "quest-paper":
        cut = max(len(text) - last_chars, 1)
        head, spans = _encode(tokenizer, text[:cut], special=True)
        tail, _ = _encode(tokenizer, text[cut:], special=False)
        ids, border = [*head, *tail], len(head)
        needles = _needles(sample, spans, limit=cut)
        return Prompt(tuple(ids[:border]), tuple(ids[border:]), needles)
    ids, spans = _encode(tokenizer, text, special=True)
    if protocol == "prefill":
        border = len(ids) - 1
    elif protocol == "stepwise":
        border = next((i for i, (start, end) in enumerate(spans) if end > start >= len(sample.context)), len(ids) - 1)
    else:
        raise UsageError(f"Unknown protocol '{protocol}'. Known: {', '.join(PROTOCOLS)}.", "Use --protocol stepwise.")
    return Prompt(tuple(ids[:border]), tuple(ids[border:]), _needles(sample, spans, limit=len(text)))


def _encode(tokenizer: Any, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and their character spans."""
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        return list(encoded["input_ids"]), [tuple(span) for span in encoded["offset_mapping"]]
    ids = list(tokenizer.encode(text, add_special_tokens=special))
    return ids, _offsets_by_decoding(tokenizer, ids, text)


def _offsets_by_decoding(tokenizer: Any, ids: Sequence[int], text: str) -> list[tuple[int, int]]:
    """Character spans of a slow tokenizer's tokens: where the decoded prefix grows."""
    spans, end = [], 0
    for count in range(1, len(ids) + 1):
        grown = min(len(tokenizer.decode(ids[:count], skip_special_tokens=True)), len(text))
        spans.append((end, max(grown, end)))
        end = max(grown, end)
    return spans


def _needles(sample: Sample, spans: Sequence[tuple[int, int]], limit: int) -> tuple[tuple[int, ...], ...]:
    """Tokens of every mention of the answer in the evidence; of the whole evidence where it is not spelled out."""
    text, answer = sample.context, sample.answers[0]
    found = []
    for first, last in sample.needles:
        mentions = [match.start() for match in re.finditer(re.escape(answer), text[first:last])]
        for begin, end in [(first + at, first + at + len(answer)) for at in mentions] or [(first, last)]:
            if end <= limit:
                found.append(tuple(i for i, (start, stop) in enumerate(spans) if start < end and stop > begin))
    return tuple(span for span in found if span)
