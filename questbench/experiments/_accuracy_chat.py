"""Chat templates: what stands around a prompt that is put to a chat model, in text, so that protocols can split it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from questbench.errors import UsageError
from questbench.tasks._base import Sample

MODES = {
    "auto": "the tokenizer's chat template, where it has one",
    "on": "the tokenizer's chat template",
    "off": "the bare prompt",
}
ASKED, ANSWERED, AGAIN = "questbenchasked", "questbenchanswered", "questbenchagain"
"""Stand for messages while the template's own text is read off."""


@dataclass(frozen=True)
class Chat:
    """The template's own text around a question."""

    head: str
    """Before the first message, special tokens included."""
    tail: str
    """Behind a question, up to where the answer begins."""
    between: str
    """Behind an answer, up to where the next question begins."""

    def wrap(self, sample: Sample) -> Sample:
        """The sample as a chat; evidence keeps its place in the text."""
        by = len(self.head)
        turns = [
            dataclasses.replace(
                turn,
                question=(turn.question if number == 0 else self.between + turn.question.lstrip()) + self.tail,
                needles=_moved(turn.needles, by),
            )
            for number, turn in enumerate(sample.turns)
        ]
        return dataclasses.replace(
            sample,
            context=self.head + sample.context,
            question=sample.question + self.tail,
            needles=_moved(sample.needles, by),
            turns=tuple(turns),
        )

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
    if mode == "off":
        return None
    if not getattr(tokenizer, "chat_template", None):
        if mode == "on":
            raise UsageError("This model's tokenizer has no chat template.", "Use --chat-template off.")
        return None
    head, tail = _apart(_render(tokenizer, [("user", ASKED)]), ASKED)
    text = _render(tokenizer, [("user", ASKED), ("assistant", ANSWERED), ("user", AGAIN)])
    _, between = _apart(text[: text.find(AGAIN)] if AGAIN in text else "", ANSWERED)
    if not text.startswith(head) or not text.endswith(tail):
        raise _strange()
    return Chat(head, tail, between)


def _render(tokenizer: Any, messages: Sequence[tuple[str, str]]) -> str:
    listed = [{"role": role, "content": content} for role, content in messages]
    try:
        return str(tokenizer.apply_chat_template(listed, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of its own, and raises what it likes
        raise UsageError(f"The chat template failed: {error}", "Use --chat-template off.") from error


def _apart(text: str, mark: str) -> tuple[str, str]:
    head, found, tail = text.partition(mark)
    if not found or mark in tail:
        raise _strange()
    return head, tail


def _strange() -> UsageError:
    return UsageError("The chat template does more than wrap the messages in text.", "Use --chat-template off.")


def _moved(spans: Sequence[tuple[int, int]], by: int) -> tuple[tuple[int, int], ...]:
    return tuple((first + by, last + by) for first, last in spans)


class _Counting:
    """See :meth:`Chat.tokenizer`."""

    def __init__(self, tokenizer: Any, chat: Chat) -> None:
        self._tokenizer, self._chat = tokenizer, chat

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Sequence[int]:
        """Token ids; the template, which holds all special tokens, is around those of a whole prompt."""
        whole = self._chat.head + text + self._chat.tail if add_special_tokens else text
        ids: Sequence[int] = self._tokenizer.encode(whole, add_special_tokens=False)
        return ids

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)
