"""The constructed model: answers that are known beforehand, and the properties that the construction promises."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from questbench import seeding
from questbench.models import constructed
from questbench.models.constructed import codes, weights
from questbench.tasks._haystack import garbage
from questbench.tasks._make import make_task

PAGE = 16


@pytest.fixture(scope="module")
def built():
    return constructed.build()


@pytest.fixture(scope="module")
def model(built):
    return built[0]


@pytest.fixture(scope="module")
def tokenizer(built):
    return built[1]


def sample_of(spec, index, length, tokenizer):
    rng = seeding.generator(0, spec, length, index)
    return make_task(spec).sample(index, length=length, tokenizer=tokenizer, rng=rng)


@torch.inference_mode()
def answer(model, tokenizer, prompt, tokens=10):
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(new[0, ids.shape[1] :])


@torch.inference_mode()
def retrieval_products(model, ids):
    """Layer 1's queries ``[Hq, T, D]`` and keys ``[Hk, T, D]``, which the rotary embedding leaves alone."""
    hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1]
    layer = model.model.layers[1]
    normed = layer.input_layernorm(hidden)[0]
    shape = (len(ids), -1, weights.HEAD_DIM)
    attention = layer.self_attn
    return tuple(proj(normed).view(shape).transpose(0, 1) for proj in (attention.q_proj, attention.k_proj))


# What it is


def test_stock_classes(model, tokenizer):
    assert type(model) is LlamaForCausalLM
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert model.config._name_or_path == "constructed"
    assert model.model.rotary_emb.inv_freq[-1] == 0
    assert model.config.num_hidden_layers > constructed.DENSE_LAYERS
    assert not model.training


def test_deterministic_and_leaves_the_random_state_alone(model):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again, _ = constructed.build()
    assert torch.equal(before, torch.random.get_rng_state())
    for (name, one), two in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_saves_and_reloads_identically(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    other = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    other_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "The pass key is 48213. <|end|>\n key 417086: 529314 \u00e9\u4e2d"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert torch.equal(ids, other_tokenizer(text, return_tensors="pt").input_ids)
    assert other_tokenizer.decode(ids[0], skip_special_tokens=True) == text
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, other(ids).logits)


# What it answers


@pytest.mark.parametrize("spec", ["passkey", "kv", "kv:records=full"])
@pytest.mark.parametrize("index", range(4))
def test_dense_answers_are_exact(model, tokenizer, spec, index):
    sample = sample_of(spec, index, 2048, tokenizer)
    text = answer(model, tokenizer, sample.prompt)
    assert make_task(spec).score(sample, text) == 1.0, text


@pytest.mark.parametrize("spec", ["passkey", "kv"])
def test_dense_is_exact_at_8k(model, tokenizer, spec):
    sample = sample_of(spec, 2, 8192, tokenizer)
    text = answer(model, tokenizer, sample.prompt, tokens=4)
    assert make_task(spec).score(sample, text) == 1.0, text


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["passkey", "kv", "kv:records=full"])
def test_dense_is_exact_at_32k(model, tokenizer, spec):
    sample = sample_of(spec, 1, 32768, tokenizer)
    text = answer(model, tokenizer, sample.prompt, tokens=4)
    assert make_task(spec).score(sample, text) == 1.0, text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", ["passkey", "kv"])
def test_half_precision_answers_alike(tokenizer, spec, dtype):
    half, _ = constructed.build(dtype)
    assert half.dtype == dtype
    sample = sample_of(spec, 1, 2048, tokenizer)
    text = answer(half, tokenizer, sample.prompt)
    assert make_task(spec).score(sample, text) == 1.0, text


def test_stops_by_itself(model, tokenizer):
    sample = sample_of("passkey", 0, 512, tokenizer)
    assert answer(model, tokenizer, sample.prompt, tokens=32).endswith("<|end|>")


def test_says_end_where_nothing_matches(model, tokenizer):
    assert answer(model, tokenizer, garbage(300), tokens=1) == "<|end|>"


def test_margins_exceed_log_of_the_longest_text(model, tokenizer):
    for spec in ("passkey", "kv"):
        sample = sample_of(spec, 3, 2048, tokenizer)
        gold = " " + sample.answers[0]
        ids = tokenizer(sample.prompt + gold, return_tensors="pt").input_ids
        with torch.inference_mode():
            best = model(ids).logits[0, -3:-1].topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > 2 * torch.tensor(131072.0).log()


# Why it works


@pytest.mark.parametrize("start", [0, 5_000, 131_072 - 200])
def test_position_heads_copy_the_tokens_before(model, tokenizer, start):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, len(tokenizer), (1, 200), generator=generator)
    with torch.inference_mode():
        places = start + torch.arange(200)[None]
        hidden = model(ids, position_ids=places, output_hidden_states=True).hidden_states[1][0]
    own = hidden[:, weights.OWN]
    for back, channels in enumerate(weights.BEFORE, start=1):
        torch.testing.assert_close(hidden[4:, channels], own[4 - back : 200 - back], atol=1e-3, rtol=0)


def test_position_heads_have_no_second_best_distance(model):
    """The construction's claim of a gap of 30, over all distances up to the longest text."""
    turning = model.model.rotary_emb.inv_freq[: weights.PAIRS].double()
    away = torch.arange(1, 131072 + 5, dtype=torch.float64)
    other = (away[:, None] * turning).cos().mean(1).max()
    assert weights.PLACE_LOGIT * (1 - other) > 30


@pytest.mark.parametrize(("spec", "budget"), [("passkey", 64), ("kv", 64)])
@pytest.mark.parametrize("index", range(3))
def test_answer_pages_have_the_best_bounds(model, tokenizer, spec, index, budget):
    """Quest's upper bounds at page size 16 rank the page to copy from among the first ``budget / 16 - 1``."""
    sample = sample_of(spec, index, 2048, tokenizer)
    text = sample.prompt + " " + sample.answers[0]
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    at = text.index(" " + sample.answers[0], sample.needles[0][0])
    targets = [place for place, (start, end) in enumerate(spans) if end > start >= at][:2]
    queries, keys = retrieval_products(model, ids)
    for step, target in zip((-3, -2), targets, strict=True):
        length = len(ids) + step + 1
        closed = (length - 1) // PAGE
        pages = keys[0, : closed * PAGE].view(closed, PAGE, -1)
        q = queries[0, length - 1]
        bounds = torch.maximum(q * pages.amax(1), q * pages.amin(1)).sum(-1)
        rank = int((bounds > bounds[target // PAGE] + 1e-3).sum())
        assert target // PAGE < closed and rank < budget // PAGE - 1


def test_haystack_keys_are_nearly_null(model, tokenizer):
    ids = tokenizer(garbage(400) + " key 417086: 529314").input_ids
    queries, keys = retrieval_products(model, ids)
    logits = (queries[0, -2] @ keys[0].T) / weights.HEAD_DIM**0.5
    assert logits[0].item() == pytest.approx(weights.SINK_LOGIT, rel=0.01)
    assert logits[10 : len(ids) - 10].abs().max() < 0.1 * weights.SINK_LOGIT


def test_codes_tell_numbers_and_cues_apart():
    texts = [*(f"{n:0{w}d}" for w in (1, 2, 3) for n in range(10**w)), *codes._CUE]
    table = torch.tensor([codes.match_code(text) for text in texts])
    products = table @ table.T
    assert (products.diagonal() == codes.ONES).all()
    assert (products - torch.diag(products.diagonal())).max() == codes.ONES - 1


# The tokenizer


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_lossless(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@settings(max_examples=100, deadline=None)
@given(
    text=st.lists(st.sampled_from([" ", "  ", "\n", "\t", "key", " 12345", "7", "<|end|>", "\u00e9", "Zq."])).map(
        "".join
    )
)
def test_lossless_on_white_space_numbers_and_specials(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.eos_token_id not in ids


def test_numbers_fall_into_groups_of_three(tokenizer):
    pieces = [
        tokenizer.decode([index]) for index in tokenizer.encode("is 48213, 1234567 and 7", add_special_tokens=False)
    ]
    assert pieces == ["is", " 482", "13", ",", " 123", "456", "7", " and", " 7"]


@pytest.mark.parametrize("spec", ["passkey", "kv"])
def test_words_of_the_tasks_are_single_tokens(tokenizer, spec):
    sample = sample_of(spec, 0, 4096, tokenizer)
    words = set(re.findall(r" [A-Za-z]+", sample.prompt))
    assert [word for word in words if len(tokenizer.encode(word, add_special_tokens=False)) > 1] == []


def test_filler_has_realistic_token_lengths(tokenizer):
    text = garbage(1000)
    assert 3 < len(text) / len(tokenizer.encode(text)) < 4


def test_offsets_cover_the_text(tokenizer):
    text = "key 417086: 529314\nThe grass is green."
    spans = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    assert "".join(text[start:end] for start, end in spans) == text
