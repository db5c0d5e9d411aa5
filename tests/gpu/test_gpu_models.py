"""Models on a GPU: generate() under every method, in half precision, against transformers' own attention there."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from core_helpers import HEADS, KV_HEADS, NAMES, Counter, sparse_methods, visible
from gpu_bodies import DEVICE, load
from tiny import CONFIGS, HYBRID, prompts, tiny
from torch import Tensor

from questbench.kernels._ops import Ops
from questbench.methods.dense import Dense
from questbench.models import hf
from questbench.models._forward import cache_argument

pytestmark = pytest.mark.gpu

LENGTHS, NEW, PAGE = [40, 33, 17], 14, 8


@functools.cache
def model_there(name: str):
    return copy.deepcopy(tiny(name)).to(DEVICE, torch.float16)


def prompt():
    ids, mask = prompts(LENGTHS)
    return ids.to(DEVICE), mask.to(DEVICE)


generation = load("models/test_generate.py", NEW=NEW, PAGE=PAGE)
generate, build, stepwise = generation.generate, generation.build, generation.stepwise


def close(got: Tensor, expected: Tensor) -> None:
    """Half precision through four layers: a few hundredths of the largest logit."""
    largest = float(expected.abs().max())
    torch.testing.assert_close(got.float(), expected.float(), rtol=0, atol=0.03 * largest)


@pytest.mark.parametrize("name", CONFIGS)
def test_dense_equals_eager_on_the_same_tokens(name: str, there: Ops) -> None:
    model, (ids, mask) = model_there(name), prompt()
    tokens, logits = generate(model, ids, mask)
    close(stepwise(model, ids, mask, build(model, Dense(), there), tokens), logits)


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
@pytest.mark.parametrize("method", NAMES)
def test_a_text_that_fits_the_budget_is_dense(name: str, method: str, there: Ops) -> None:
    model, (ids, mask) = model_there(name), prompt()
    tokens, logits = generate(model, ids, mask)
    close(stepwise(model, ids, mask, build(model, sparse_methods(64)[method], there), tokens), logits)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("method", NAMES)
def test_generate_does_what_steps_do_and_reads_what_the_method_says(name: str, method: str, there: Ops) -> None:
    model, (ids, mask), counter = model_there(name), prompt(), Counter()
    policy = sparse_methods(16)[method]
    tokens, logits = generate(model, ids, mask, build(model, policy, there, observer=counter, dense_layers=2))
    again = stepwise(model, ids, mask, build(model, policy, there, dense_layers=2), tokens)
    close(again, logits)
    full, dense = (2, 1) if name in HYBRID else (4, 2)
    assert len(counter.visits) == full * (NEW - 1)
    for number, visits in enumerate(counter.visits):
        step, layer = divmod(number, full)
        for row, length in enumerate(LENGTHS):
            seen = length + step + 1
            everything = layer < dense or step < policy.warmup_steps
            expected = seen if everything else visible(policy, seen, step + 1)
            assert (visits[row].sum(-1) == HEADS // KV_HEADS * expected).all()


@pytest.mark.parametrize("method", ["dense", *NAMES])
def test_forks_of_one_prefill(method: str, there: Ops) -> None:
    model, (ids, mask) = model_there("llama"), prompt()
    policy = Dense() if method == "dense" else sparse_methods(16)[method]
    base = build(model, Dense(), there, collect=frozenset({1, 8, "sum"}), bounds=True)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    hf.forward(model, ids, base, attention_mask=mask, position_ids=places)
    outputs = []
    for page_size in (None, 16):
        cache = hf.fork(base, policy, dense_layers=1, page_size=page_size)
        grown = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        outputs.append(
            hf.forward(model, ids[:, :1], cache, attention_mask=grown, position_ids=places[:, -1:] + 1).float()
        )
        hf.release(cache)
    assert all(out.isfinite().all() for out in outputs)
    if policy.keep_step() is not None or method == "dense":  # other pages, the same entries
        close(outputs[1], outputs[0])


def test_beams_and_a_second_turn(there: Ops) -> None:
    model, (ids, mask) = model_there("llama"), prompt()
    model.set_attn_implementation("questbench")
    for method in (Dense(), *sparse_methods(16).values()):
        options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5, "do_sample": False}
        out = model.generate(ids, attention_mask=mask, **cache_argument(model, build(model, method, there)), **options)
        assert out.shape == (6, 45)
        cache = build(model, method, there)
        first = model.generate(ids[:1], **cache_argument(model, cache), max_new_tokens=5, do_sample=False)
        both = torch.cat([first, ids[:1, :6]], dim=1)
        assert model.generate(both, **cache_argument(model, cache), max_new_tokens=5, do_sample=False).shape == (1, 56)
