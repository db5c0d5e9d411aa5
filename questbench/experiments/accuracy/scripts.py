"""What a row does once its context is prefilled: answer questions greedily, or be taught a given text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from questbench.experiments.accuracy.batch import Script
from questbench.experiments.accuracy.chat import spoken
from questbench.experiments.accuracy.protocol import Steps
from questbench.experiments.counting import ReadCounter


@dataclass(frozen=True)
class Reply:
    """One greedy answer."""

    text: str
    """Without special tokens."""
    answer: str
    """What is scored of it: in a chat the part behind the model's thoughts, if it has any."""
    tokens: tuple[int, ...]
    stop: str
    """Why it ended: ``eos``, ``stop`` (a stop text) or ``length``."""
    first: int
    """Number of the decode step whose logits gave the first token."""
    last: int
    """Number of the last decode step of this answer."""


@dataclass(frozen=True)
class Decoding:
    """How answers end."""

    tokenizer: Any
    stop_ids: frozenset[int]
    """Tokens that end an answer; they are no part of it."""
    stop: Sequence[str]
    """Texts that end an answer; they are part of it."""
    max_new_tokens: int
    chat: bool = False
    """A chat model answers: its thoughts and the line breaks in front of an answer do not end it."""


def converse(turns: Sequence[Steps], decoding: Decoding, counter: ReadCounter | None = None) -> Script[list[Reply]]:
    """Feed each turn's question and decode its answer; the next turn follows behind the answer."""
    replies: list[Reply] = []
    step = 0
    unfed: tuple[int, ...] = ()
    for turn in turns:
        if counter is not None:
            counter.needles = turn.needles
        for token in (*unfed, *turn.tokens):
            logits = yield token
            step += 1
        first = step - 1
        new: list[int] = []
        text, answer, why, unfed = "", "", "length", ()
        while len(new) < decoding.max_new_tokens:
            token = int(logits.argmax())
            if token in decoding.stop_ids:
                why = "eos"
                break
            new.append(token)
            text = decoding.tokenizer.decode(new, skip_special_tokens=True)
            answer = spoken(text) if decoding.chat else text
            if any(mark in answer for mark in decoding.stop):
                why = "stop"
            if why == "stop" or len(new) == decoding.max_new_tokens:
                unfed = (token,)
                break
            logits = yield token
            step += 1
        replies.append(Reply(text, answer, tuple(new), why, first, step - 1))
    return replies


@dataclass(frozen=True)
class Taught:
    """Losses of a given text."""

    losses: tuple[float, ...]
    """Negative log-likelihood in nats, from fp32 logits, of every token but the first."""
    greedy: tuple[bool, ...]
    """Whether each of these tokens was the most likely one."""


def teach(tokens: Sequence[int]) -> Script[Taught]:
    """Feed ``tokens`` but the last one; each is judged by the logits behind the token before it."""
    losses: list[Tensor] = []
    greedy: list[Tensor] = []
    for token, target in itertools.pairwise(tokens):
        logits = (yield token).float()
        losses.append(torch.logsumexp(logits, 0) - logits[target])
        greedy.append(logits.argmax() == target)
    # One transfer at the end instead of one per token.
    return Taught(
        tuple(torch.stack(losses).tolist()) if losses else (), tuple(torch.stack(greedy).tolist()) if greedy else ()
    )
