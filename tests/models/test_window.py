"""Sliding windows in rings of pages: the entries that transformers would keep, in every use of the layer."""

from __future__ import annotations

import copy

import pytest
import torch
from test_static_loop import prefilled
from tiny import prompts, tiny
from transformers.cache_utils import DynamicSlidingWindowLayer

from questbench import kernels
from questbench.attention import Scoring
from questbench.methods.dense import Dense
from questbench.models import hf
from questbench.models.hf_attention import dense
from questbench.models.static_loop import StaticLoop
from questbench.models.window import WindowLayer

KV_HEADS, HEADS, DIM = 2, 4, 16


def pair(window: int, lengths: list[int], page_size: int = 4, ops: str = "cpu"):
    """A layer of transformers and one with a ring that hold the same prompts, padded on the left."""
    generator, rows, longest = torch.Generator().manual_seed(0), len(lengths), max(lengths)
    plain = DynamicSlidingWindowLayer(window)
    plain.update(*(torch.randn(rows, KV_HEADS, longest, DIM, generator=generator) for _ in "kv"))
    own = WindowLayer(copy.copy(plain), page_size, kernels.load(ops))
    mask = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    return plain, own, mask, torch.tensor(lengths)[:, None], generator


def step(plain, own, mask, places, generator, window, scoring):
    rows = len(places)
    q = torch.randn(rows, HEADS, DIM, generator=generator)
    k, v = (torch.randn(rows, KV_HEADS, 1, DIM, generator=generator) for _ in "kv")
    mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
    keys, values = plain.update(k, v)
    want = dense(q[:, :, None], keys, values, mask[:, -keys.shape[2] :], window, scoring)[:, :, 0]
    got = own.step(q, k, v, scoring, places)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)
    return mask, places + 1


def check_alike(plain, own, mask) -> None:
    """What is padding means nothing."""
    assert own.cumulative_length == plain.cumulative_length
    assert own.keys.shape == plain.keys.shape and own.held_columns == plain.keys.shape[2]
    valid = mask[:, -plain.keys.shape[2] :, None][:, None]
    assert torch.equal(own.keys * valid, plain.keys * valid)
    assert torch.equal(own.values * valid, plain.values * valid)


@pytest.mark.parametrize("ops", ["cpu", "reference"])
@pytest.mark.parametrize(("window", "page_size"), [(8, 4), (8, 16), (7, 4), (13, 1), (2, 4)])
@pytest.mark.parametrize("lengths", [[3], [40], [20, 5, 1], [2, 2]], ids=str)
def test_a_ring_is_the_window_of_transformers(window, page_size, lengths, ops):
    plain, own, mask, places, generator = pair(window, lengths, page_size, ops)
    scoring = Scoring(DIM**-0.5, 0.0)
    check_alike(plain, own, mask)
    for _ in range(2 * window + 3):
        mask, places = step(plain, own, mask, places, generator, window, scoring)
        check_alike(plain, own, mask)


def test_capped_scores_and_whatever_happens_in_between():
    window, scoring = 8, Scoring(DIM**-0.5, 5.0)
    plain, own, mask, places, generator = pair(window, [20, 5])
    for number in range(12):
        mask, places = step(plain, own, mask, places, generator, window, scoring)
        if number == 3:  # the text goes on with several tokens
            more = [torch.randn(2, KV_HEADS, 3, DIM, generator=generator) for _ in "kv"]
            valid = torch.cat([mask, mask.new_ones(2, 3)], dim=1)[:, -(window - 1 + 3) :, None][:, None]
            for got, want in zip(own.update(*more), plain.update(*more), strict=True):
                assert torch.equal(got * valid, want * valid)
            mask, places = torch.cat([mask, mask.new_ones(2, 3)], dim=1), places + 3
        if number == 5:
            for layer in (plain, own):
                layer.batch_select_indices(torch.tensor([1, 0]))
            mask, places = mask[[1, 0]], places[[1, 0]]
        if number == 7:
            for layer in (plain, own):
                layer.reorder_cache(torch.tensor([0, 0]))
            mask, places = mask[[0, 0]], places[[0, 0]]
        check_alike(plain, own, mask)


@pytest.mark.parametrize("twin_of", [copy.copy, copy.deepcopy])
def test_copies_go_their_own_way(twin_of):
    window, scoring = 8, Scoring(DIM**-0.5, 0.0)
    plain, own, mask, places, generator = pair(window, [20])
    mask, places = step(plain, own, mask, places, generator, window, scoring)
    twin, before = twin_of(own), own.keys
    assert torch.equal(twin.keys, before)
    mask, places = step(plain, own, mask, places, generator, window, scoring)
    assert torch.equal(twin.keys, before) and not torch.equal(own.keys, before)
    q, k, v = (torch.ones(1, heads, *more, DIM) for heads, more in ((HEADS, ()), (KV_HEADS, (1,)), (KV_HEADS, (1,))))
    twin.step(q, k, v, scoring, places)
    check_alike(plain, own, mask)


def test_going_back_is_exact_or_said_not_to_be():
    window, scoring = 8, Scoring(DIM**-0.5, 0.0)
    plain, own, mask, places, generator = pair(window, [3, 1])
    mask, places = step(plain, own, mask, places, generator, window, scoring)
    kept, columns = copy.copy(plain), own.cumulative_length
    after = mask, places
    for _ in range(3):
        mask, places = step(plain, own, mask, places, generator, window, scoring)
    assert own.rewind(columns, [4, 2])
    plain, (mask, places) = kept, after
    check_alike(plain, own, mask)
    for _ in range(6):
        mask, places = step(plain, own, mask, places, generator, window, scoring)
    assert not own.rewind(columns, [4, 2]) and own.cumulative_length == columns
    for _ in range(3):
        own.step(torch.ones(2, HEADS, DIM), *torch.ones(2, 2, KV_HEADS, 1, DIM), scoring, places)
        assert not own.rewind(columns, [4, 2]), "what is gone stays gone"


@pytest.mark.parametrize("name", ["gemma2", "mistral-sliding"])
def test_a_cache_is_used_by_loops_and_by_the_model_in_turn(name):
    model, (ids, mask) = tiny(name), prompts([20, 13])
    caches = [prefilled(model, Dense(), ids, mask)[0] for _ in range(2)]
    token, more = ids[:, -1], torch.tensor([[5, 6, 7], [8, 9, 10]])
    for _ in range(3):
        loops = [
            StaticLoop(model, cache, mask=mask, plan=plan)
            for cache, plan in zip(caches, ("auto", "model"), strict=True)
        ]
        assert [loop.path for loop in loops] == ["flat", "model"]
        for _ in range(5):
            got, want = (loop.feed(token) for loop in loops)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))
            token = want.argmax(-1)
        assert any(isinstance(layer, WindowLayer) and layer._ring is not None for layer in caches[0].layers)
        mask = torch.cat([mask, mask.new_ones(2, 5 + 3)], dim=1)
        got, want = (hf.prefill(model, more, cache, mask=mask) for cache in caches)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


def test_forks_of_a_cache_in_use_are_their_own():
    model, (ids, mask) = tiny("gemma2"), prompts([20])
    cache, logits = prefilled(model, Dense(), ids, mask)
    loop = StaticLoop(model, cache)
    first = loop.generate(logits.argmax(-1), 6)
    twin = hf.fork(cache, Dense(), dense_layers=0)
    tokens = loop.tokens.clone()
    want = [loop.step().tolist() for _ in range(9)]
    other = StaticLoop(model, twin)
    other.tokens.copy_(tokens)
    assert [other.step().tolist() for _ in range(9)] == want and first
