"""What every forward checks: tokens that the model knows, logits that are numbers, the cache's name."""

import copy
import warnings

import pytest
import torch
from tiny import prompts, tiny

from questbench.errors import CellError, NotFiniteError, PrerequisiteError
from questbench.methods.dense import Dense
from questbench.methods.streaming_llm import StreamingLLM
from questbench.models import hf
from questbench.models._forward import cache_argument, check_finite
from questbench.models.static_loop import StaticLoop


def build(model, method=None):
    return hf.build_cache(model, method or Dense(), ops="cpu", page_size=8, dense_layers=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("dtype", "name", "next_step"), [
    (torch.float16, "fp16", "--dtype bf16 or --dtype fp32"),
    (torch.bfloat16, "bf16", "--dtype fp32"),
])  # fmt: skip
def test_logits_that_are_no_numbers_name_the_dtype(bad, dtype, name, next_step):
    logits = torch.zeros((2, 97), dtype=dtype)
    assert check_finite(logits, dtype) is logits
    logits[1, 3] = bad
    with pytest.raises(NotFiniteError, match=f"the range of {name}") as caught:
        check_finite(logits, dtype)
    assert next_step in caught.value.hint and isinstance(caught.value, CellError)


@pytest.mark.parametrize("way", ["forward", "every", "prefill", "loop"])
def test_a_model_that_overflows_is_noticed(way):
    model, (ids, _) = copy.deepcopy(tiny("llama")), prompts([20])
    cache = build(model)
    if way == "loop":
        hf.prefill(model, ids, cache)
        loop = StaticLoop(model, cache)
    model.lm_head.weight.data[5] = float("inf")
    calls = {
        "loop": lambda: loop.feed([7]),
        "prefill": lambda: hf.prefill(model, ids, cache),
        "forward": lambda: hf.forward(model, ids, cache),
        "every": lambda: hf.forward(model, ids, cache, all_logits=True),
    }
    with pytest.raises(NotFiniteError, match="fp32"):
        calls[way]()


@pytest.mark.parametrize("token", [97, 5000, -1])
def test_tokens_outside_the_vocabulary_are_refused(token):
    model, (ids, _) = tiny("llama"), prompts([20])
    cache = build(model)
    with pytest.raises(PrerequisiteError, match=f"Token {token} is outside the model's vocabulary of 97"):
        hf.prefill(model, [[3, token, 4]], cache)
    hf.prefill(model, ids, cache)
    loop = StaticLoop(model, cache)
    for feed in (lambda: hf.forward(model, [[token]], cache), lambda: loop.feed([token])):
        with pytest.raises(PrerequisiteError, match="outside the model's vocabulary"):
            feed()


def test_nothing_warns_of_a_deprecated_name():
    model, (ids, _) = tiny("llama"), prompts([20])
    model.set_attn_implementation("questbench")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hf.prefill(model, ids, build(model, StreamingLLM(16)))
        cache = build(model)
        model.generate(ids, **cache_argument(model, cache), max_new_tokens=3, do_sample=False)
    assert cache.get_seq_length() == 22
