"""Chat templates: read off whatever they do, told a fixed day, asked for no thoughts; answers behind thoughts."""

from __future__ import annotations

import copy
import datetime
from typing import Any

import accuracy_helpers as helpers
import pytest
import torch

from questbench.errors import UsageError
from questbench.experiments.accuracy import template
from questbench.experiments.accuracy.chat import Chat, find, spoken, thinking
from questbench.experiments.accuracy.protocol import Steps
from questbench.experiments.accuracy.scripts import Decoding, converse
from questbench.tasks._base import Sample, Turn

HEADER = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
GENERATE = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
PLAIN = HEADER + GENERATE
DATED = "<|system|>Today is {{ strftime_now('%d %b %Y') }}, {{ strftime_now('%Y-%m-%d') }}.<|end|>" + PLAIN
CHANNELS = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}<|final|>{% endif %}{{ m.content }}<|end|>{% endfor %}" + GENERATE
)
SWITCHED = PLAIN.replace(
    "<|assistant|>{% endif", "<|assistant|>{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif"
)
THOUGHTFUL = PLAIN.replace("<|assistant|>{% endif", "<|assistant|><think>\n{% endif")
ALWAYS = "{% if messages | length > 1 %}{{ raise_exception('one message') }}{% endif %}" + THOUGHTFUL
PARTS = PLAIN.replace("{{ m.content }}", "{% for part in m.content %}{{ part.text }}{% endfor %}")
ONCE = "{% if messages | length > 2 %}{{ raise_exception('one question') }}{% endif %}" + PLAIN
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN


def speaking(text: str) -> Any:
    tokenizer = copy.copy(helpers.random_model().tokenizer)
    tokenizer.chat_template = text
    return tokenizer


@pytest.mark.parametrize(
    ("text", "tail", "opening"),
    [
        (PLAIN, "<|end|><|assistant|>", None),
        (CHANNELS, "<|end|><|assistant|>", "<|end|><|assistant|><|final|>"),
        (SWITCHED, "<|end|><|assistant|><think>\n\n</think>\n\n", None),
        (THOUGHTFUL, "<|end|><|assistant|>", None),
        (ALWAYS, "<|end|><|assistant|><think>\n\n</think>\n\n", None),
        (PARTS, "<|end|><|assistant|>", None),
        (STRICT, "<|end|><|assistant|>", None),
    ],
    ids=["plain", "channels", "switched off", "thinks first", "thinks always", "parts", "no system role"],
)
def test_where_an_answer_begins(text: str, tail: str, opening: str | None) -> None:
    found = find(speaking(text), "auto")
    assert found is not None and (found.head, found.tail, found.opening) == ("<|user|>", tail, opening)
    sample = Sample("x", "It is 42.", "\nWhat is it? ", ("42",), answer_prefix="It is")
    assert found.wrap(sample).prompt == "<|user|>It is 42.\nWhat is it?" + (opening or tail) + "It is"


def test_a_template_of_one_question_serves_all_tasks_but_those_of_several_turns() -> None:
    found = find(speaking(ONCE), "auto")
    assert found is not None and found.between is None
    turn = Turn("\nWhat?", ("42",))
    assert found.wrap(Sample("x", "It is 42.", "\nWhat?", ("42",), turns=(turn,))).prompt.startswith("<|user|>It is")
    with pytest.raises(UsageError, match="no second question"):
        found.wrap(Sample("x", "It is 42.", "\nWhat?", ("42",), turns=(turn, turn)))


def test_a_template_that_raises_is_an_error_that_says_what_helps() -> None:
    with pytest.raises(UsageError, match="only pirates") as error:
        find(speaking("{{ raise_exception('only pirates') }}"), "auto")
    assert error.value.hint == "Use --chat-template off."


def test_of_several_templates_the_plain_one_is_used() -> None:
    tokenizer = speaking(PLAIN)
    tokenizer.chat_template = {"default": PLAIN, "tool_use": "{{ raise_exception('tools') }}"}
    assert find(tokenizer, "auto") == find(speaking(PLAIN), "auto")
    tokenizer.chat_template = {"tool_use": PLAIN}
    assert find(tokenizer, "auto") is None


def test_the_day_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    written = template.render(speaking(DATED), [{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert written == "<|system|>Today is 26 Jul 2024, 2024-07-26.<|end|><|user|>Hi<|end|><|assistant|>"
    assert template.describe(speaking(DATED))["date"] == "2024-07-26"
    # Every format that templates use is what the clock of that day would write.
    midnight = datetime.datetime(2024, 7, 26)
    for form in ("%d %b %Y", "%B %-d, %Y", "%A, %d/%m/%y", "%Y-%m-%d %H:%M:%S", "%a %I %p %j", "%-m"):
        text = "{{ strftime_now('" + form + "') }}{{ messages[0].content }}"
        assert template.render(speaking(text), [{"role": "user", "content": ""}]) == midnight.strftime(form)


@pytest.mark.parametrize("text", ["\n" + DATED, "  \n\n" + DATED, "x\n" + DATED])
def test_pinning_leaves_the_rest_of_a_template_as_it_is(text: str) -> None:
    tokenizer, messages = speaking(text), [{"role": "user", "content": "Hi"}]
    today = datetime.datetime.now()
    own = tokenizer.apply_chat_template(messages, tokenize=False)
    for form in ("%d %b %Y", "%Y-%m-%d"):
        own = own.replace(today.strftime(form), template.TODAY.strftime(form))
    assert template.render(tokenizer, messages) == own


def test_a_run_keeps_the_template() -> None:
    kept = template.describe(speaking(PLAIN))
    assert kept["text"] == PLAIN and len(kept["sha256"]) == 64 and "date" not in kept
    assert kept["sha256"] != template.describe(speaking(DATED))["sha256"]


@pytest.mark.parametrize(
    ("text", "answer", "still"),
    [
        ("It is 42.", "It is 42.", False),
        ("\n\n It is 42.\n", "It is 42.\n", False),
        ("<think>\nIs it 41?\n</think>\n\nIt is 42.", "It is 42.", False),
        ("\n<thinking>41</thinking>42", "42", False),
        ("<think>\nIs it 41?\n", "", True),
        ("<think>", "", True),
        ("", "", False),
    ],
)
def test_an_answer_stands_behind_the_thoughts(text: str, answer: str, still: bool) -> None:
    assert spoken(text) == answer and thinking(text) == still


def played(text: str, chat: bool) -> Any:
    """What comes of a model that writes ``text``."""
    tokenizer = helpers.random_model().tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    script = converse([Steps((3,))], Decoding(tokenizer, frozenset({1}), ("\n",), 200, chat))
    next(script)
    for token in [*ids, 1]:
        logits = torch.zeros(len(tokenizer))
        logits[token] = 1.0
        try:
            script.send(logits)
        except StopIteration as ended:
            return ended.value[0]
    raise AssertionError("it did not end")


def test_stop_rules_of_a_chat_do_not_end_at_the_first_line_break() -> None:
    thoughts = "<think>\nIs it 41?\nNo.\n</think>\n\n"
    for before in ("", "\n", thoughts):
        reply = played(f"{before}It is 42.\nWell, 43.", chat=True)
        assert (reply.stop, reply.answer) == ("stop", "It is 42.\n") and reply.text == f"{before}It is 42.\n"
    assert played("<think>\nIs it 41?\n", chat=True).answer == ""
    # A bare prompt is continued: a line break ends it wherever it stands.
    assert played("\nIt is 42.", chat=False).text == "\n"


def test_answers_that_ended_in_a_thought_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    helpers.use(helpers.random_model(), monkeypatch)
    settings = {"tasks": ["passkey"], "seq_lens": [256], "samples": 2, "methods": ["dense"], "model": "random"}
    monkeypatch.setattr("questbench.experiments.accuracy.scripts.spoken", lambda text: "")
    monkeypatch.setattr("questbench.experiments.accuracy.rows.thinking", lambda text: True)
    monkeypatch.setattr(
        "questbench.experiments.accuracy.session.Session.chat_for", lambda *_: Chat("user ", " assistant ", None)
    )
    records, rows, _ = helpers.run(**settings)
    assert all(row["thinking"] for row in rows) and records[0].stats["thinking"] == 2
    assert "2 of 2 answers ended while the model was still thinking" in " ".join(records[0].warnings)


def test_texts_that_spell_special_tokens_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    helpers.use(helpers.random_model(), monkeypatch)
    monkeypatch.setattr("questbench.experiments.accuracy.session.spelled", lambda *_: ["<|im_end|>"])
    settings = {"tasks": ["passkey"], "seq_lens": [256], "samples": 1, "methods": ["dense"], "model": "random"}
    records, rows, _ = helpers.run(**settings)
    assert rows[0]["meta"]["special_tokens"] == ["<|im_end|>"]
    assert any("<|im_end|>" in warning for warning in records[0].warnings)
