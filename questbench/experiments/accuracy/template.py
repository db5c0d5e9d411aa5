"""A chat template as a program that is run: always for an answer without thoughts, always on the same day."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from typing import Any

from questbench.errors import UsageError

TODAY = datetime.date(2024, 7, 26)
"""What templates that write today's date are told: prompts are the same on every day."""
_CODES = ("%-d", "%-m", "%A", "%a", "%B", "%b", "%Y", "%y", "%m", "%d", "%H", "%I", "%M", "%S", "%p", "%j")
DIRECT = {"enable_thinking": False, "thinking": False}
"""What templates of models that think before they answer are asked for; others do not look at it."""


def text_of(tokenizer: Any) -> str:
    """The template's own text, empty where there is none; of several the one for plain chats."""
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        found = found.get("default", "")
    return str(found or "")


def render(tokenizer: Any, messages: Sequence[dict[str, Any]], **settings: Any) -> str:
    """The text of a chat.

    Args:
        messages: role and content of each.
        settings: ``add_generation_prompt`` or ``continue_final_message``, as transformers has them.

    Raises:
        UsageError: there is no template, or it does not take these messages.
    """
    template = text_of(tokenizer)
    if not template:
        raise UsageError("This model's tokenizer has no chat template.", "Use --chat-template off.")
    if "strftime_now" in template:
        template = _pinned() + template
    try:
        return str(
            tokenizer.apply_chat_template(list(messages), chat_template=template, tokenize=False, **DIRECT, **settings)
        )
    except Exception as error:  # a template is a program of its own, and raises what it likes
        raise UsageError(f"The chat template failed: {error}", "Use --chat-template off.") from error


def describe(tokenizer: Any) -> dict[str, Any]:
    """The template as a run keeps it: its text, the text's SHA-256, and the day that it was told."""
    text = text_of(tokenizer)
    told = {"date": TODAY.isoformat()} if "strftime_now" in text else {}
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "text": text, **told}


def _pinned() -> str:
    """Jinja that puts :data:`TODAY` in the place of the clock."""
    replaced = "".join(f".replace('{code}', '{_written(code)}')" for code in _CODES)
    # The line break belongs to the block and is dropped with it: the template's own text stays as it is.
    return "{% macro strftime_now(format) %}{{ format" + replaced + " }}{% endmacro %}\n"


def _written(code: str) -> str:
    midnight = datetime.datetime.combine(TODAY, datetime.time())
    plain = {"%-d": str(TODAY.day), "%-m": str(TODAY.month)}
    return plain.get(code) or midnight.strftime(code)
