"""Prompts of tokenizers that put special tokens around a text: those in front belong to it, those behind do not."""

from __future__ import annotations

import random
from typing import Any

import pytest
from suite import TOKENIZERS
from tokenizer_kinds import KINDS, around, in_front

from questbench.experiments.accuracy.chat import Chat
from questbench.experiments.accuracy.protocol import split, split_stream
from questbench.tasks._haystack import tokens
from questbench.tasks._make import make_task
from questbench.tasks._tokens import appended, part_ids, prompt_ids, spanned, spelled
from questbench.tasks._truncate import middle

TEXT = "The grass is green.\nkey 417086: 529314"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_appended_is_no_part_of_a_prompt(kind: str) -> None:
    tokenizer = around(kind)
    bare = tokenizer.encode(TEXT, add_special_tokens=False)
    assert tokenizer.eos_token_id not in bare
    assert (tokenizer.encode(TEXT)[-1] == tokenizer.eos_token_id) == (kind in ("eos", "both"))
    assert appended(tokenizer) == (kind in ("eos", "both"))
    assert prompt_ids(tokenizer, TEXT) == in_front(tokenizer, kind) + bare
    assert part_ids(tokenizer, TEXT) == bare
    for special, expected in ((True, in_front(tokenizer, kind) + bare), (False, bare)):
        ids, spans = spanned(tokenizer, TEXT, special=special)
        assert ids == expected and len(spans) == len(ids) and spans[-1][1] == len(TEXT)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_that_append_nothing_are_taken_as_they_are(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    assert appended(tokenizer) == 0 and prompt_ids(tokenizer, TEXT) == list(tokenizer.encode(TEXT))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", ["stepwise", "prefill", "quest-paper"])
@pytest.mark.parametrize("spec", ["passkey", "multiturn:turns=2:records=8"])
def test_no_protocol_ends_a_prompt_with_an_end_of_text(kind: str, protocol: str, spec: str) -> None:
    tokenizer, task = around(kind), make_task(spec)
    sample = task.sample(0, length=700, tokenizer=tokenizer, rng=random.Random(0))
    prompt = split(sample, tokenizer, protocol, task.last_chars(sample))
    every = [*prompt.prefill, *prompt.steps, *(token for turn in prompt.later for token in turn.tokens)]
    assert tokenizer.eos_token_id not in every
    assert every[: len(in_front(tokenizer, kind))] == in_front(tokenizer, kind)
    assert every.count(tokenizer.bos_token_id) == len(in_front(tokenizer, kind))
    if protocol == "stepwise":
        # The same prompt but for what stands in front of it.
        plain = split(sample, around("none"), protocol, task.last_chars(sample))
        assert prompt.prefill == (*in_front(tokenizer, kind), *plain.prefill) and prompt.steps == plain.steps
        assert prompt.later[:1] == plain.later[:1] or prompt.later[0].tokens == plain.later[0].tokens


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_is_read_is_not_judged_on_an_end_of_text(kind: str) -> None:
    tokenizer = around(kind)
    sample = make_task("ppl").sample(0, length=700, tokenizer=tokenizer, rng=random.Random(0))
    prompt, plain = (split_stream(sample, one, 0) for one in (tokenizer, around("none")))
    assert prompt.steps == plain.steps and prompt.scored_bytes == plain.scored_bytes
    assert sample.meta["tokens"] == prompt.length


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_do_not_count_it(kind: str) -> None:
    tokenizer = around(kind)
    for spec in ("passkey", "kv", "niah", "vt", "cwe", "fwe", "docqa", "chain", "multiturn"):
        sample = make_task(spec).sample(1, length=2048, tokenizer=tokenizer, rng=random.Random(1))
        assert sample.meta["tokens"] == len(prompt_ids(tokenizer, sample.prompt)) <= 2048
    cut = middle(TEXT * 40, 100, tokenizer)
    assert 95 <= cut.tokens == tokens(tokenizer, (TEXT * 40)[: cut.head] + (TEXT * 40)[cut.tail :]) <= 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", [3, 60])
@pytest.mark.parametrize("counting", [False, True])
def test_a_template_counts_once_in_a_prompt_that_is_cut(kind: str, words: int, counting: bool) -> None:
    """It was counted in both halves, so that a prompt for 1,024 tokens had 963."""
    frame = "system says hello. " * words
    chat = Chat(frame, "\nassistant:", "")
    bare: Any = TOKENIZERS["lumps"] if counting else around(kind)
    tokenizer = chat.tokenizer(bare)
    text = "One two three four five six. " * 400
    cut = middle(text, 1024, tokenizer)
    whole = chat.head + text[: cut.head] + text[cut.tail :] + chat.tail
    reached = len(part_ids(bare, whole))
    assert cut.tokens == reached and 1024 - 8 <= reached <= 1024
    assert abs(cut.head - (len(text) - cut.tail)) < 80, "both ends have a half"
    short = middle(text[:200], 1024, tokenizer)
    assert short.half is None and short.tokens == len(part_ids(bare, chat.head + text[:200] + chat.tail))
    assert middle(text, 5, tokenizer).half == 0, "there is no room beside the template"


def test_texts_that_spell_special_tokens() -> None:
    tokenizer = around("bos")
    text = f"Behind {tokenizer.eos_token} nothing comes."
    tokenizer.split_special_tokens = False
    try:
        assert spelled(tokenizer, text) == [tokenizer.eos_token] and spelled(tokenizer, TEXT) == []
        tokenizer.split_special_tokens = True
        assert spelled(tokenizer, text) == []
    finally:
        tokenizer.split_special_tokens = True
    assert spelled(TOKENIZERS["characters"], text) == []
