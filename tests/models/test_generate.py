"""generate() over our caches: dense equals eager, and every method does in a batch what it does step by step."""

from __future__ import annotations

import functools

import pytest
import torch
from core_helpers import HEADS, KV_HEADS, NAMES, Counter, sparse_methods, visible
from tiny import CONFIGS, HYBRID, prompts, tiny
from torch import Tensor

from questbench.methods.dense import Dense
from questbench.methods.h2o import H2O
from questbench.methods.tova import TOVA
from questbench.models import hf
from questbench.models._forward import cache_argument

LENGTHS, NEW, PAGE = [40, 33, 17], 14, 8
MODELS = ("llama", "gemma2")


def generate(model, ids, mask, cache=None, **options) -> tuple[Tensor, Tensor]:
    """Greedy tokens ``[B, new]`` and logits ``[new, B, V]``; eager and transformers' own cache without ``cache``."""
    model.set_attn_implementation("eager" if cache is None else "questbench")
    out = model.generate(
        ids,
        attention_mask=mask,
        **cache_argument(model, cache),
        **{"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True} | options,
    )
    return out.sequences[:, ids.shape[1] :], torch.stack(out.logits)


@functools.cache
def eager(name) -> tuple[Tensor, Tensor]:
    """What the model generates by itself from the usual prompts."""
    return generate(tiny(name), *prompts(LENGTHS))


@functools.cache
def sparse(name, method, ops) -> tuple[Tensor, Tensor]:
    """What it generates from them with a method on a small budget, or ``dense``."""
    policy = Dense() if method == "dense" else sparse_methods(16)[method]
    return generate(tiny(name), *prompts(LENGTHS), build(tiny(name), policy, ops))


def build(model, method, ops, **options):
    model.set_attn_implementation("questbench")
    return hf.build_cache(model, method, ops=ops, **{"page_size": PAGE, "dense_layers": 1} | options)


def stepwise(model, ids, mask, cache, tokens) -> Tensor:
    """Logits of feeding the prompt and then ``tokens`` one by one, without generate()."""
    places = (mask.cumsum(1) - 1).clamp(min=0)
    logits = [hf.forward(model, ids, cache, attention_mask=mask, position_ids=places)]
    for token in tokens.T[:-1]:
        mask = torch.cat([mask, torch.ones((len(mask), 1), dtype=mask.dtype)], dim=1)
        places = places[:, -1:] + 1
        logits.append(hf.forward(model, token[:, None], cache, attention_mask=mask, position_ids=places))
    return torch.stack(logits)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_dense_equals_eager_under_left_padding(name, ops):
    model, (ids, mask) = tiny(name), prompts(LENGTHS)
    tokens, logits = eager(name)
    got_tokens, got = sparse(name, "dense", ops)
    assert torch.equal(got_tokens, tokens)
    close(got, logits)
    close(stepwise(model, ids, mask, build(model, Dense(), ops), tokens), logits)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_dense_equals_eager_from_one_token_on(name, ops):
    model, (ids, mask) = tiny(name), prompts([1, 1])
    tokens, logits = generate(model, ids, mask)
    for method in (Dense(), *sparse_methods(64).values()):
        got_tokens, got = generate(model, ids, mask, build(model, method, ops))
        assert torch.equal(got_tokens, tokens)
        close(got, logits)


def test_dense_equals_eager_past_the_sliding_window_of_a_decoded_text(ops):
    model, (ids, mask) = tiny("gemma2"), prompts([3, 2])
    tokens, logits = generate(model, ids, mask, max_new_tokens=24)
    got_tokens, got = generate(model, ids, mask, build(model, Dense(), ops), max_new_tokens=24)
    assert torch.equal(got_tokens, tokens)
    close(got, logits)


@pytest.mark.every_pair
@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
@pytest.mark.parametrize("method", NAMES)
def test_a_text_that_fits_the_budget_is_dense_token_for_token(name, method, ops):
    model, (ids, mask) = tiny(name), prompts(LENGTHS)
    tokens, logits = eager(name)
    got_tokens, got = generate(model, ids, mask, build(model, sparse_methods(64)[method], ops))
    assert torch.equal(got_tokens, tokens)
    close(got, logits)


@pytest.mark.every_pair
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", NAMES)
def test_stepwise_equals_generate(name, method, ops):
    model, (ids, mask) = tiny(name), prompts(LENGTHS)
    tokens, logits = sparse(name, method, ops)
    close(stepwise(model, ids, mask, build(model, sparse_methods(16)[method], ops), tokens), logits)
    dense = sparse(name, "dense", ops)[1]
    assert (dense - logits).abs().max() > 1e-3, "the method did nothing"


@pytest.mark.every_pair
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", NAMES)
def test_a_row_of_a_batch_is_what_it_is_alone(name, method, ops):
    model, (ids, mask) = tiny(name), prompts(LENGTHS)
    tokens, _ = sparse(name, method, ops)
    for row, length in enumerate(LENGTHS):
        alone = ids[row : row + 1, -length:], mask[row : row + 1, -length:]
        got = stepwise(model, *alone, build(model, sparse_methods(16)[method], ops), tokens[row : row + 1])
        assert torch.equal(got[:, 0].argmax(-1), tokens[row])


@pytest.mark.every_pair
@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("method", NAMES)
def test_counts_in_a_model_are_the_method_s(name, method, ops):
    model, (ids, mask), counter = tiny(name), prompts(LENGTHS), Counter()
    policy = sparse_methods(16)[method]
    generate(model, ids, mask, build(model, policy, ops, observer=counter, dense_layers=2))
    full = 2 if name in HYBRID else 4
    dense = 1 if name in HYBRID else 2
    assert len(counter.visits) == full * (NEW - 1)
    for number, visits in enumerate(counter.visits):
        step, layer = divmod(number, full)
        for row, length in enumerate(LENGTHS):
            seen = length + step + 1
            everything = layer < dense or step < policy.warmup_steps
            expected = seen if everything else visible(policy, seen, step + 1)
            assert (visits[row].sum(-1) == HEADS // KV_HEADS * expected).all()


@pytest.mark.parametrize("method", ["dense", *NAMES])
def test_forks_of_one_prefill_equal_a_prefill_each(method, ops):
    model, (ids, mask) = tiny("gemma2"), prompts(LENGTHS)
    policy = Dense() if method == "dense" else sparse_methods(16)[method]
    tokens, logits = sparse("gemma2", method, ops)
    base = build(model, Dense(), ops, collect=frozenset({1, 8, "sum"}), bounds=True)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    first = hf.forward(model, ids, base, attention_mask=mask, position_ids=places)
    close(first, logits[0])
    for page_size in (None, PAGE):
        cache = hf.fork(base, policy, dense_layers=1, page_size=page_size)
        grown, place = mask, places[:, -1:]
        for step, token in enumerate(tokens.T[:-1]):
            grown, place = torch.cat([grown, torch.ones((len(grown), 1), dtype=torch.long)], dim=1), place + 1
            got = hf.forward(model, token[:, None], cache, attention_mask=grown, position_ids=place)
            close(got, logits[step + 1])
        hf.release(cache)
    pools = [layer.store.pool for layer in base.layers if not layer.is_sliding]
    hf.release(base)
    assert [pool.in_use for pool in pools] == [0] * len(pools)


def test_beam_search_equals_eager(ops):
    """Over nine tokens: every row begins a page."""
    model, (ids, mask) = tiny("llama"), prompts(LENGTHS)
    options = {"num_beams": 3, "num_return_sequences": 2, "output_logits": False, "return_dict_in_generate": False}

    def search(cache):
        model.set_attn_implementation("eager" if cache is None else "questbench")
        return model.generate(
            ids, attention_mask=mask, **cache_argument(model, cache), max_new_tokens=9, do_sample=False, **options
        )

    expected = search(None)
    assert torch.equal(search(build(model, Dense(), ops)), expected)
    for method in sparse_methods(64).values():
        assert torch.equal(search(build(model, method, ops)), expected)
    for method in (TOVA(16), H2O(16)):
        assert search(build(model, method, ops)).shape == expected.shape


def test_sampling_several_sequences_of_one_prompt(ops):
    model, (ids, mask) = tiny("llama"), prompts([20])
    model.set_attn_implementation("questbench")
    out = model.generate(
        ids,
        attention_mask=mask,
        **cache_argument(model, build(model, TOVA(16), ops)),
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=5,
    )
    assert out.shape == (3, 25)


def test_a_cache_goes_on_in_a_second_turn(ops):
    model, (ids, mask) = tiny("llama"), prompts([20, 20])
    more, _ = prompts([6, 6], seed=1)
    cache = build(model, Dense(), ops)
    model.set_attn_implementation("questbench")
    first = model.generate(ids, attention_mask=mask, **cache_argument(model, cache), max_new_tokens=5, do_sample=False)
    both = torch.cat([first, more], dim=1)
    second = model.generate(both, **cache_argument(model, cache), max_new_tokens=5, do_sample=False)
    model.set_attn_implementation("eager")
    assert torch.equal(second, model.generate(both, max_new_tokens=5, do_sample=False))
    model.set_attn_implementation("questbench")
    for method in sparse_methods(16).values():
        cache = build(model, method, ops)
        turn = model.generate(
            ids, attention_mask=mask, **cache_argument(model, cache), max_new_tokens=5, do_sample=False
        )
        both = torch.cat([turn, more], dim=1)
        assert model.generate(both, **cache_argument(model, cache), max_new_tokens=5, do_sample=False).shape == (2, 36)


def test_rows_can_be_repeated_and_selected(ops):
    model, (ids, _) = tiny("gemma2"), prompts([20, 20])
    cache = build(model, TOVA(16), ops)
    hf.forward(model, ids, cache)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3]))
    token = torch.tensor([[5], [6]])
    other = build(model, TOVA(16), ops)
    hf.forward(model, ids, other)
    close(hf.forward(model, token, cache), hf.forward(model, token, other))


def test_the_python_interface_of_the_package():
    import questbench

    model, (ids, mask) = tiny("llama"), prompts(LENGTHS)
    cache = questbench.build_cache(model, questbench.Quest(budget=16), page_size=PAGE, ops="reference")
    model.set_attn_implementation("questbench")
    assert model.generate(ids, attention_mask=mask, **cache_argument(model, cache), max_new_tokens=3).shape == (3, 43)
    assert questbench.StreamingLLM(budget=64).name == "streaming_llm" and questbench.H2O.step_mass == "sum"
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = questbench.Nonsense
