"""Chat templates: what stands around a prompt that is put to a chat model, in text, so that protocols can split it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from questbench.errors import UsageError
from questbench.experiments.accuracy.template import render, text_of
from questbench.tasks._base import Sample, Turn
from questbench.tasks._tokens import part_ids

MODES = {
    "auto": "the tokenizer's chat template, where it has one",
    "on": "the tokenizer's chat template",
    "off": "the bare prompt",
}
ASKED, ANSWERED, AGAIN = "questbenchasked", "questbenchanswered", "questbenchagain"
"""Stand for messages while the template's own text is read off."""
THOUGHTS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"))
"""What models write around their thoughts."""


@dataclass(frozen=True)
class Chat:
    """The template's own text around a question."""

    head: str
    """Before the first message, special tokens included."""
    tail: str
    """Behind a question, up to where the model begins to answer."""
    between: str | None
    """Behind an answer, up to where the next question begins; ``None`` where the template takes one question only."""
    opening: str | None = None
    """As ``tail``, where the answer's beginning is given; ``None`` where that makes no difference."""

    def wrap(self, sample: Sample) -> Sample:
        """The sample as a chat; evidence keeps its place in the text.

        The beginning of an answer that a prompt gives stands behind the header of the answer, not in the question.

        Raises:
            UsageError: a sample of several turns, and the template takes one question only.
        """
        by = len(self.head)
        if len(sample.turns) > 1 and self.between is None:
            raise UsageError("The chat template takes no second question.", "Use --chat-template off.")
        turns = [
            dataclasses.replace(
                turn,
                question=("" if number == 0 else self.between or "") + self.asked(turn, first=number == 0),
                needles=_moved(turn.needles, by),
                answer_prefix="",
            )
            for number, turn in enumerate(sample.turns)
        ]
        return dataclasses.replace(
            sample,
            context=self.head + sample.context,
            question=self.asked(sample),
            needles=_moved(sample.needles, by),
            turns=tuple(turns),
            answer_prefix="",
        )

    def asked(self, turn: Sample | Turn, *, first: bool = True) -> str:
        """A question, up to where the model goes on; behind a header of its own it needs no separator."""
        question = turn.question if first else turn.question.lstrip()
        return question + self.tail if not turn.answer_prefix else self.given(question, turn.answer_prefix)

    def given(self, question: str, answer_prefix: str) -> str:
        """A question with the beginning of its answer."""
        return question.rstrip() + (self.tail if self.opening is None else self.opening) + answer_prefix

    def tokenizer(self, tokenizer: Any) -> Any:
        """A tokenizer that counts the template with every whole prompt, so that tasks fit their texts to it."""
        return _Counting(tokenizer, self)


def find(tokenizer: Any, mode: str) -> Chat | None:
    """The template to use, ``None`` for the bare prompt.

    Raises:
        UsageError: an unknown mode, or ``on`` without a template, or a template that does more than wrap a message.
    """
    if mode not in MODES:
        raise UsageError(
            f"Unknown chat template mode '{mode}'. Known: {', '.join(MODES)}.", "Use --chat-template auto."
        )
    if mode == "off" or (mode == "auto" and not text_of(tokenizer)):
        return None
    head, tail = _apart(_render(tokenizer, ASKED), ASKED)
    # The header of an answer that the prompt begins itself.
    opening = _last_part(tokenizer, head, ASKED, ANSWERED)
    if tail.rstrip().endswith(tuple(opens for opens, _ in THOUGHTS)):
        # The template wants a thought first. It gets none: the tasks allow for an answer.
        closes = next(closes for opens, closes in THOUGHTS if tail.rstrip().endswith(opens))
        tail = f"{tail.rstrip()}\n\n{closes}\n\n" if opening is None else opening
    if opening is not None and tail.startswith(opening):
        opening = None  # what a tail has more is a thought that is over before it began
    return Chat(head, tail, _last_part(tokenizer, head, ASKED, ANSWERED, AGAIN), opening)


def spoken(text: str) -> str:
    """The answer in what a chat model wrote: behind its thoughts and white space; empty for as long as it thinks."""
    said = text.lstrip()
    for opens, closes in THOUGHTS:
        if said.startswith(opens):
            return said.partition(closes)[2].lstrip()
    return said


def thinking(text: str) -> bool:
    """Whether a text ends inside a thought."""
    return any(text.lstrip().startswith(opens) and closes not in text for opens, closes in THOUGHTS)


def _last_part(tokenizer: Any, head: str, *messages: str) -> str | None:
    """What the template writes between the last two of some messages; ``None`` where it does not take them as texts."""
    try:
        text = _render(tokenizer, *messages)
    except UsageError:
        return None
    if not text.startswith(head + ASKED) or any(text.count(message) != 1 for message in messages[1:]):
        return None
    before, last = messages[-2:]
    return text[text.index(before) + len(before) : text.index(last)]


def _render(tokenizer: Any, *texts: str) -> str:
    """A chat of user and assistant in turn; what an assistant is to answer gets its header.

    Contents are plain texts, or the lists of parts that templates for images take where those show no plain text.
    """
    roles = ("user", "assistant")
    ends = len(texts) % 2 == 1
    plain = [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in plain]
    try:
        text = render(tokenizer, plain, add_generation_prompt=ends)
    except UsageError as error:
        try:
            return render(tokenizer, parts, add_generation_prompt=ends)
        except UsageError:
            raise error from None
    with contextlib.suppress(UsageError):
        return text if ASKED in text else render(tokenizer, parts, add_generation_prompt=ends)
    return text


def _apart(text: str, mark: str) -> tuple[str, str]:
    head, found, tail = text.partition(mark)
    if not found or mark in tail:
        raise UsageError("The chat template does more than wrap the messages in text.", "Use --chat-template off.")
    return head, tail


def _moved(spans: Sequence[tuple[int, int]], by: int) -> tuple[tuple[int, int], ...]:
    return tuple((first + by, last + by) for first, last in spans)


class _Counting:
    """See :meth:`Chat.tokenizer`."""

    def __init__(self, tokenizer: Any, chat: Chat) -> None:
        self.bare, self._chat = tokenizer, chat

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Sequence[int]:
        """Token ids; the template, which holds all special tokens, is around those of a whole prompt."""
        return self.framed(text) if add_special_tokens else part_ids(self.bare, text)

    def framed(self, text: str, answer_prefix: str = "") -> Sequence[int]:
        """Token ids of a whole prompt in the template."""
        chat = self._chat
        asked = chat.given(text, answer_prefix) if answer_prefix else text + chat.tail
        return part_ids(self.bare, chat.head + asked)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)
