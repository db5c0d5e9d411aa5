"""A prompt in parts gives what it gives in one piece: logits, mass, what is kept, and every later token."""

from __future__ import annotations

import pytest
import torch
from core_helpers import sparse_methods
from tiny import prompts, tiny

from questbench.attention import causal, flash
from questbench.errors import UsageError
from questbench.methods.dense import Dense
from questbench.models import hf

LENGTHS, PAGE = [40, 33, 17], 8
METHODS = {"dense": Dense(), **sparse_methods(16)}


def build(model, method, **options):
    return hf.build_cache(model, method, ops="cpu", **{"page_size": PAGE, "dense_layers": 1} | options)


def close(got, expected) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk", [13, 39])
def test_parts_equal_one_piece(name, method, chunk):
    model, (ids, mask) = tiny(name), prompts(LENGTHS)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    whole, parts = build(model, METHODS[method]), build(model, METHODS[method])
    want = hf.forward(model, ids, whole, attention_mask=mask, position_ids=places)
    told = []
    got = hf.prefill(model, ids, parts, chunk=chunk, mask=mask, progress=lambda *done: told.append(done))
    close(got, want)
    assert told[-1] == (40, 40) and len(told) == -(-40 // chunk)
    for one, other in zip(whole.layers, parts.layers, strict=True):
        if isinstance(one, hf.MethodLayer):
            assert one.store.held == other.store.held and one.store.seen == other.store.seen
            if one.store.positions is not None:
                slots = max(one.store.held)
                assert torch.equal(one.store.positions[..., :slots], other.store.positions[..., :slots])
    step = {"attention_mask": torch.cat([mask, mask[:, -1:]], 1), "position_ids": places[:, -1:] + 1}
    token = want.argmax(-1)[:, None]
    close(hf.forward(model, token, parts, **step), hf.forward(model, token, whole, **step))


def test_a_last_part_of_one_token_is_no_decode_step():
    # 40 = 3 * 13 + 1: a decode step would leave the method its own way to read.
    model, (ids, _) = tiny("llama"), prompts([40])
    cache = build(model, sparse_methods(16)["quest"])
    hf.prefill(model, ids, cache, chunk=13)
    assert [layer.store.steps for layer in cache.layers] == [0] * 4
    hf.forward(model, ids[:, :1], cache)
    assert [layer.store.steps for layer in cache.layers] == [1] * 4


@pytest.mark.parametrize("mode", ["sum", 1, 6, 25])
def test_collected_mass_is_the_softmax_s(mode, monkeypatch):
    # Blocks of one row and of many give the same column sums as the whole matrix.
    model, (ids, _) = tiny("llama"), prompts([40])
    masses = []
    for block in (1, causal.PREFILL_BLOCK):
        monkeypatch.setattr(causal, "PREFILL_BLOCK", block)
        cache = build(model, Dense(), collect=frozenset({mode}))
        hf.prefill(model, ids, cache, chunk=17)
        masses.append(torch.stack([layer.store.prefill_mass[mode] for layer in cache.layers]))
    torch.testing.assert_close(masses[0], masses[1])
    queries = 40 if mode == "sum" else mode
    assert torch.allclose(masses[0].sum(-1), torch.tensor(2.0 * queries), rtol=1e-5)  # two query heads per KV head


def test_early_parts_make_no_logits_and_nothing_keeps_a_graph():
    model, (ids, _) = tiny("llama"), prompts([40])
    made, hook = [], model.get_output_embeddings().register_forward_hook(lambda *call: made.append(call[2].shape[1]))
    try:
        logits = hf.prefill(model, ids, build(model, Dense()), chunk=13)
    finally:
        hook.remove()
    assert made == [0, 0, 0, 1] and not logits.requires_grad


def test_nonsense_is_refused():
    model, (ids, _) = tiny("llama"), prompts([4])
    with pytest.raises(UsageError, match="parts of 0"):
        hf.prefill(model, ids, build(model, Dense()), chunk=0)


@pytest.mark.parametrize("chunk", [13, 39])
def test_parts_by_flash_attention_end_their_diagonal_in_the_same_corner(chunk, monkeypatch):
    """What a GPU takes in place of masks; here torch writes its mask out, which shows where the diagonal lies."""
    model, (ids, mask) = tiny("llama"), prompts(LENGTHS)
    want = hf.prefill(model, ids, build(model, Dense()), mask=mask, chunk=chunk)
    asked = []
    monkeypatch.setattr(flash, "usable", lambda *_: False)
    monkeypatch.setattr(causal, "_flash", lambda q, k, v: asked.append((q.shape, k.shape)) or True)
    close(hf.prefill(model, ids, build(model, Dense()), mask=mask, chunk=chunk), want)
    assert asked and all(q[1] < k[1] for q, k in asked), "later parts alone"
