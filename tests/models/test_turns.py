"""A text that goes on behind a filled cache: positions, padding and attention mass continue where they were."""

import pytest
import torch
from core_helpers import sparse_methods
from tiny import prompts, tiny

from questbench.errors import UsageError
from questbench.methods.dense import Dense
from questbench.methods.h2o import H2O
from questbench.methods.quest import Quest
from questbench.methods.tova import TOVA
from questbench.models import hf
from questbench.models.static_loop import StaticLoop

LENGTHS, MORE = [24, 17, 9], [7, 5, 6]
ALL = frozenset({1, 5, "sum"})


def build(model, method, ops="cpu", **options):
    return hf.build_cache(model, method, **{"ops": ops, "page_size": 8, "dense_layers": 0} | options)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * float(want.abs().max()))


def joined(ids, mask, more, more_mask):
    """The two turns as one text with left padding."""
    rows = [torch.cat([a[m.bool()], b[n.bool()]]) for a, m, b, n in zip(ids, mask, more, more_mask, strict=True)]
    longest = max(map(len, rows))
    together = torch.stack([torch.cat([row.new_zeros(longest - len(row)), row]) for row in rows])
    return together, torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()


@pytest.mark.parametrize("given", ["new", "whole", "ones", "none"])
def test_a_mask_on_a_filled_cache_continues_positions(given):
    model, (ids, mask) = tiny("llama"), prompts(LENGTHS)
    more, more_mask = prompts(MORE if given in ("new", "whole") else [7, 7, 7], seed=1)
    want = hf.prefill(model, (both := joined(ids, mask, more, more_mask))[0], build(model, Dense()), mask=both[1])
    cache = build(model, Dense())
    hf.prefill(model, ids, cache, mask=mask)
    passed = {"new": more_mask, "whole": torch.cat([mask, more_mask], dim=1), "ones": more_mask, "none": None}[given]
    close(hf.prefill(model, more, cache, mask=passed, chunk=4), want)


def test_padding_under_sliding_windows_is_asked_for_rather_than_guessed():
    model, (ids, mask) = tiny("gemma2"), prompts(LENGTHS)
    more, more_mask = prompts([7, 7, 7], seed=1)
    want = hf.prefill(model, (both := joined(ids, mask, more, more_mask))[0], build(model, Dense()), mask=both[1])
    cache = build(model, Dense())
    hf.prefill(model, ids, cache, mask=mask)
    with pytest.raises(UsageError, match="sliding-window layers need to know"):
        hf.prefill(model, more, cache, mask=more_mask)
    close(hf.prefill(model, more, cache, mask=torch.cat([mask, more_mask], dim=1)), want)


def test_masks_that_do_not_fit_are_refused():
    model, (ids, mask) = tiny("llama"), prompts(LENGTHS)
    cache = build(model, Dense())
    with pytest.raises(UsageError, match="does not fit"):
        hf.prefill(model, ids, cache, mask=mask[:, 1:])
    hf.prefill(model, ids, cache, mask=mask)
    wrong = torch.ones((3, 24 + 7), dtype=torch.long)
    with pytest.raises(UsageError, match="counts"):
        hf.prefill(model, prompts([7, 7, 7])[0], cache, mask=wrong)


def masses(cache, mode):
    return torch.stack([layer.store.prefill_mass[mode] for layer in cache.layers])


def test_collected_mass_is_that_of_all_turns_and_decoded_tokens():
    model, (ids, _) = tiny("llama"), prompts([30, 30])
    whole = build(model, Dense(), collect=ALL)
    hf.prefill(model, ids, whole)
    parts = build(model, Dense(), collect=ALL)
    hf.prefill(model, ids[:, :11], parts, chunk=4)
    hf.prefill(model, ids[:, 11:20], parts)
    for place in range(20, 24):
        hf.forward(model, ids[:, place : place + 1], parts)
    loop = StaticLoop(model, parts)
    for place in range(24, 30):
        loop.feed(ids[:, place])
    for mode in ALL:
        close(masses(parts, mode), masses(whole, mode))
    for method in (H2O(16), TOVA(16)):
        one, other = (hf.fork(cache, method, dense_layers=0) for cache in (parts, whole))
        for layer, wanted in zip(one.layers, other.layers, strict=True):
            assert torch.equal(layer.store.positions[:, :, :15], wanted.store.positions[:, :, :15])


def test_a_fork_without_the_mass_of_the_whole_text_is_refused():
    model, (ids, _) = tiny("llama"), prompts([30, 30])
    for method in (Dense(), Quest(8)):
        cache = build(model, method, collect=ALL if method.budgeted else frozenset())
        hf.prefill(model, ids[:, :20], cache)
        if method.budgeted:
            hf.fork(cache, H2O(16), dense_layers=0)
            hf.forward(model, ids[:, 20:21], cache)  # reads some pages only: there is no mass of the others
            hf.prefill(model, ids[:, 21:], cache)
        with pytest.raises(ValueError, match="attention mass of all queries of the text"):
            hf.fork(cache, H2O(16), dense_layers=0)


@pytest.mark.parametrize("name", ["h2o", "tova"])
def test_a_fork_under_the_same_method_goes_on_with_its_mass(name):
    model, (ids, _) = tiny("llama"), prompts([30])
    method = sparse_methods(16)[name]
    cache = build(model, method)
    hf.prefill(model, ids[:, :24], cache)
    twin = hf.fork(cache, method, dense_layers=0)
    for place in range(24, 30):
        one, other = (hf.forward(model, ids[:, place : place + 1], c) for c in (cache, twin))
        assert torch.equal(one, other)


def test_a_loop_goes_back_by_row():
    model, (ids, mask) = tiny("llama"), prompts(LENGTHS)
    cache = build(model, Quest(16, variant="eval"))
    first = hf.prefill(model, ids, cache, mask=mask).argmax(-1)
    loop = StaticLoop(model, cache)
    loop.tokens.copy_(first)
    mark = loop.mark()
    made = [loop.step().tolist() for _ in range(11)]
    assert loop.rewind(mark) and loop.layers[0].store.held == LENGTHS
    assert [loop.step().tolist() for _ in range(11)] == made
