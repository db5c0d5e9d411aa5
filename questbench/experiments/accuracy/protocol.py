"""Protocols: which tokens of a prompt are prefilled dense and which are fed one by one with the method active."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from questbench.errors import CellError, UsageError
from questbench.tasks._base import Sample
from questbench.tasks._tokens import is_fast, part_ids, prompt_ids, spanned

PROTOCOLS = {
    "stepwise": "context prefilled dense, then the question and the answer token by token with the method active",
    "prefill": "the prompt but its last token prefilled dense, then token by token with the method active",
    "quest-paper": "the last characters of the prompt (a number per task) fed token by token, as the paper's code does",
    "stream": "a given text: prefilled dense up to the largest budget, then every token with the method active",
}
STREAM = "stream"
Needles = tuple[tuple[tuple[int, ...], ...], ...]
"""The evidence: needles that are all needed, each as its mentions, of which one is enough, each as text positions."""


@dataclass(frozen=True)
class Steps:
    """Tokens fed one by one, and where the evidence for the answer behind them lies."""

    tokens: tuple[int, ...]
    needles: Needles = ()
    """Where the evidence lies; empty where that is not known."""


@dataclass(frozen=True)
class Prompt:
    """A tokenised sample: ``prefill`` goes through one dense forward, ``steps`` one token at a time."""

    prefill: tuple[int, ...]
    steps: tuple[int, ...]
    """At least one token: its logits give the first answer token. Under ``prefill`` the last token of the prompt."""
    needles: Needles = ()
    """See :class:`Steps`."""
    later: tuple[Steps, ...] = ()
    """Questions of further turns."""
    removed: int = 0
    """Tokens cut out of the middle of ``prefill`` because the model takes no longer texts."""
    recalls: tuple[int, ...] = ()
    """Stream: which of ``steps[1:]`` repeat what only a far earlier place tells."""
    scored_bytes: int = 0
    """Stream: UTF-8 bytes of the text of ``steps[1:]``."""

    @property
    def length(self) -> int:
        """Tokens of the prompt (of the first turn)."""
        return len(self.prefill) + len(self.steps)

    @property
    def turns(self) -> tuple[Steps, ...]:
        """All questions."""
        return (Steps(self.steps, self.needles), *self.later)


@dataclass(frozen=True)
class Asked:
    """A request, or a window of a long one: ``ids[:cut]`` is prefilled dense, the rest is fed token by token."""

    request: int
    """Which of the sample's."""
    ids: tuple[int, ...]
    cut: int
    judged: int
    """Of how many last tokens the likelihood is asked; 0 where the model is to go on."""

    @property
    def ahead(self) -> bool:
        """Whether the prefill's own logits judge more than one token."""
        return self.judged > len(self.ids) - self.cut


@dataclass(frozen=True)
class Prepared:
    """A sample, tokenised and split."""

    sample: Sample
    prompt: Prompt
    max_new_tokens: int
    context_tokens: int
    """Tokens of the sample's own context, which a stream's prefill may exceed."""
    asked: tuple[Asked, ...] = ()
    """Of a sample that is a set of requests, all of them; ``prompt`` is the first."""

    @property
    def hash(self) -> str:
        """Of all token ids: the same prompt has the same hash, whatever the cell."""
        ids = self.prompt.prefill + self.prompt.steps + tuple(turn.tokens for turn in self.prompt.later)
        ids += tuple(one.ids for one in self.asked)
        return hashlib.sha256(repr(ids).encode()).hexdigest()[:16]


def split(sample: Sample, tokenizer: Any, protocol: str, last_chars: int, *, special: bool = True) -> Prompt:
    """Tokenise a sample and split it by the protocol.

    The prompt is tokenised once and split in token space, so that no protocol changes the tokens; only ``quest-paper``
    tokenises the two parts apart, as the paper's code does (without its habit of dropping a token where the
    tokenizer adds no BOS).

    Args:
        special: let the tokenizer put its special tokens in front; a chat template has written them already.
    """
    text = sample.prompt
    if protocol == "quest-paper":
        cut = max(len(text) - last_chars, 1)
        head, spans = _encode(tokenizer, text[:cut], special=special)
        tail, _ = _encode(tokenizer, text[cut:], special=False)
        ids, border = [*head, *tail], len(head)
        needles = _needles(sample, spans, limit=cut)
    else:
        ids, spans = _encode(tokenizer, text, special=special)
        if protocol == "prefill":
            border = len(ids) - 1
        elif protocol == "stepwise":
            border = _border(spans, len(sample.context), len(ids) - 1)
        else:
            raise UsageError(
                f"Unknown protocol '{protocol}'. Known: {', '.join(PROTOCOLS)}.", "Use --protocol stepwise."
            )
        needles = _needles(sample, spans, limit=len(text))
    later = tuple(
        Steps(
            tuple(part_ids(tokenizer, turn.question + turn.answer_prefix)),
            _needles(dataclasses.replace(sample, answers=turn.answers, needles=turn.needles), spans, limit=len(text)),
        )
        for turn in sample.turns[1:]
    )
    return Prompt(tuple(ids[:border]), tuple(ids[border:]), needles, later)


def split_stream(sample: Sample, tokenizer: Any, behind: int) -> Prompt:
    """Tokenise a text whose tokens are predicted, and prefill what no cell's method would act on.

    Args:
        behind: the largest budget of the cells. Up to there nothing is dropped or skipped, so the prefill reaches at
            least that far, further if the sample's own context does. What follows is the same text for every cell.

    Raises:
        CellError: no token is left behind the prefill.
    """
    text = sample.prompt
    ids, spans = _encode(tokenizer, text, special=True)
    border = max(_border(spans, len(sample.context), len(ids)), behind)
    steps = tuple(ids[border:])
    if len(steps) < 2:
        raise CellError(
            f"{sample.id}: of {len(ids):,} tokens none is left to predict behind a prefill of {border:,}.",
            "Use a longer --seq-len or smaller budgets.",
        )
    counted = spans[border + 1 :]
    recalls = tuple(
        place
        for place, (start, end) in enumerate(counted)
        if any(start < last and end > first for first, last in sample.recalls)
    )
    return Prompt(
        tuple(ids[:border]), steps, recalls=recalls, scored_bytes=len(text[spans[border][1] :].encode("utf-8"))
    )


def shorten(prompt: Prompt, limit: int) -> Prompt:
    """Cut the middle out of the prefill so that the prompt has ``limit`` tokens (LongBench's rule, on token ids).

    What is fed token by token stays whole. A mention that loses a token is none any more; a needle may lose all of its
    mentions, and is then one that nobody can read.

    Raises:
        CellError: there is no room for any of the context.
    """
    too_many = prompt.length - limit
    if too_many <= 0:
        return prompt
    kept = len(prompt.prefill) - too_many
    if kept < 2:
        raise CellError(
            f"A prompt of {prompt.length:,} tokens does not fit the model's {limit:,}, whatever is cut of its context.",
            "Use a shorter --seq-len or another model.",
        )
    head = kept - kept // 2
    tail = head + too_many

    def mentions(spans: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
        whole = [span for span in spans if not any(head <= place < tail for place in span)]
        return tuple(tuple(place if place < head else place - too_many for place in span) for span in whole)

    def moved(needles: Needles) -> Needles:
        return tuple(mentions(spans) for spans in needles)

    return dataclasses.replace(
        prompt,
        prefill=prompt.prefill[:head] + prompt.prefill[tail:],
        needles=moved(prompt.needles),
        later=tuple(Steps(turn.tokens, moved(turn.needles)) for turn in prompt.later),
        removed=too_many,
    )


def _border(spans: Sequence[tuple[int, int]], chars: int, default: int) -> int:
    """The first token that begins at or behind a character."""
    return next((i for i, (start, end) in enumerate(spans) if end > start >= chars), default)


def _encode(tokenizer: Any, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and their character spans."""
    if is_fast(tokenizer):
        return spanned(tokenizer, text, special=special)
    ids = prompt_ids(tokenizer, text) if special else part_ids(tokenizer, text)
    return ids, _offsets_by_decoding(tokenizer, ids, text)


def _offsets_by_decoding(tokenizer: Any, ids: Sequence[int], text: str) -> list[tuple[int, int]]:
    """Character spans of a slow tokenizer's tokens: where the decoded prefix grows."""
    spans, end = [], 0
    for count in range(1, len(ids) + 1):
        grown = min(len(tokenizer.decode(ids[:count], skip_special_tokens=True)), len(text))
        spans.append((end, max(grown, end)))
        end = max(grown, end)
    return spans


def _needles(sample: Sample, spans: Sequence[tuple[int, int]], limit: int) -> Needles:
    """Tokens of every mention of the answer in the evidence; of the whole evidence where it is not spelled out."""
    text, answer = sample.context, sample.answers[0]
    needles = []
    for first, last in sample.needles:
        starts = [first + match.start() for match in re.finditer(re.escape(answer), text[first:last])]
        mentions = [(start, start + len(answer)) for start in starts] or [(first, last)]
        places = [
            tuple(i for i, (start, stop) in enumerate(spans) if start < end and stop > begin)
            for begin, end in mentions
            if end <= limit
        ]
        needles.append(tuple(span for span in places if span))
    if sample.needles_needed == "any":
        needles = [tuple(span for mentions in needles for span in mentions)]
    return tuple(mentions for mentions in needles if mentions)
