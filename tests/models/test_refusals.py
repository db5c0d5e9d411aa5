"""What cannot work is refused with a reason, before or when it is tried; nothing is quietly wrong."""

import pytest
import torch
from tiny import BASE, prompts, tiny
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from questbench import kernels
from questbench.attention import Scoring
from questbench.errors import CellError, PrerequisiteError, UsageError
from questbench.experiments.setup import cost_model
from questbench.kernels._limits import Limits
from questbench.kernels.reference import ReferenceOps
from questbench.methods.dense import Dense
from questbench.methods.quest import Quest
from questbench.methods.streaming_llm import StreamingLLM
from questbench.methods.tova import TOVA
from questbench.models import hf
from questbench.models._forward import cache_argument
from questbench.models._rotation import by_difference
from questbench.models._shape import cache_shape
from questbench.models.rotary import rotations

OPS = ReferenceOps()


def build(model, method=None, **options):
    return hf.build_cache(model, method or TOVA(16), ops=OPS, **{"page_size": 8, "dense_layers": 1} | options)


def made(kind, **extra):
    config = AutoConfig.for_model(kind, **{**BASE, "num_hidden_layers": 2, **extra})
    return AutoModelForCausalLM.from_config(config).eval()


OTHERS = {
    "gemma3_text": {"head_dim": 64, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "glm": {"head_dim": 64},
}
"""Frequencies per kind of layer; neighbouring channels turned in place of halves."""


def turning(name):
    return made(name, **OTHERS[name]) if name in OTHERS else tiny(name)


def test_keys_as_tensors_are_refused():
    model, (ids, _) = tiny("llama"), prompts([5])
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        cache = build(model)
        with pytest.raises(UsageError, match="keys and values") as caught:
            model(ids, **cache_argument(model, cache))
        assert "set_attn_implementation('questbench')" in caught.value.hint
        # The cache is still good: nothing was stored.
        assert cache.get_seq_length() == 0
        assert hf.forward(model, ids, cache).isfinite().all() and cache.get_seq_length() == 5


@pytest.mark.parametrize(
    ("kind", "extra", "reason"),
    [
        ("falcon", {}, "attention interface"),
        ("bloom", {}, "attention interface"),
        ("mamba", {}, "attention interface|another kind|without a known"),
        ("llama4_text", {"num_local_experts": 2, "attention_chunk_size": 8}, "chunked"),
        ("jamba", {"num_experts": 2, "num_hidden_layers": 4}, "another kind|without a known"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "another kind"),
    ],
)
def test_layers_of_unknown_kinds_are_refused(kind, extra, reason):
    with torch.device("meta"):
        model = made(kind, **extra)
    with pytest.raises(PrerequisiteError, match=reason):
        build(model)


def test_shared_keys_and_values_are_refused():
    kinds = ["sliding_attention", "full_attention"] * 2
    with torch.device("meta"):
        model = made("gemma4_text", num_hidden_layers=4, layer_types=kinds, num_kv_shared_layers=2)
    with pytest.raises(PrerequisiteError, match="share keys and values"):
        build(model)


def test_encoder_decoders_are_refused():
    config = AutoConfig.for_model("t5", vocab_size=97, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4)
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    with pytest.raises(PrerequisiteError, match="encoder-decoder"):
        build(model)


def test_latent_attention_is_refused():
    with torch.device("meta"):
        model = made("deepseek_v3", first_k_dense_replace=2, num_key_value_heads=4)
    with pytest.raises(PrerequisiteError, match="latent"):
        build(model)


def test_values_of_another_size_than_keys_are_refused():
    cache = build(tiny("llama"))
    keys = torch.zeros(1, 2, 3, 64)
    handle, _ = cache.update(keys, keys[..., :32], 0)
    with pytest.raises(PrerequisiteError, match="one head size"):
        handle.layer.attend(torch.zeros(1, 4, 3, 64), None, Scoring(1.0))


def test_dense_layers_must_leave_a_sparse_one():
    model = tiny("llama")
    with pytest.raises(UsageError, match="leaves no sparse layer") as caught:
        build(model, dense_layers=4)
    assert "--dense-layers 3" in caught.value.hint
    assert build(model, Dense(), dense_layers=4)
    # Layers 0 and 2 of Gemma 2 slide: with 3 dense layers one sparse layer is left, with 4 none.
    assert build(tiny("gemma2"), dense_layers=3)
    with pytest.raises(UsageError, match="leaves no sparse layer"):
        build(tiny("gemma2"), dense_layers=4)
    with pytest.raises(UsageError, match="cannot be -1"):
        build(model, dense_layers=-1)


def test_a_model_that_only_slides_has_nothing_to_make_sparse():
    with pytest.raises(PrerequisiteError, match="All layers of this model slide"):
        build(tiny("mistral-sliding"))


def test_a_budget_below_one_page_is_refused():
    with pytest.raises(UsageError, match="below one page"):
        build(tiny("llama"), Quest(7))


def test_padding_on_the_right_is_refused():
    model, (ids, mask) = tiny("llama"), prompts([9, 5])
    with pytest.raises(UsageError, match="right"):
        hf.forward(model, ids.flip(1), build(model), attention_mask=mask.flip(1))


def test_a_row_without_a_token_in_a_step_is_refused():
    model, (ids, mask) = tiny("llama"), prompts([9, 5])
    cache = build(model)
    hf.forward(model, ids, cache, attention_mask=mask)
    with pytest.raises(UsageError, match="rows without a token"):
        hf.forward(model, [[3], [0]], cache, attention_mask=torch.cat([mask, torch.tensor([[1], [0]])], dim=1))


def test_another_batch_size_is_refused():
    model, (ids, _) = tiny("llama"), prompts([9, 9])
    cache = build(model)
    hf.forward(model, ids, cache)
    with pytest.raises(UsageError, match="holds 2 rows"):
        hf.forward(model, [[3], [4], [5]], cache)


def test_a_rollback_is_refused():
    model, (ids, mask) = tiny("llama"), prompts([20])
    cache = build(model)
    hf.forward(model, ids, cache)
    cache.crop(0)
    with pytest.raises(UsageError, match="rolled back"):
        cache.crop(-2)
    assert not cache.is_croppable
    model.set_attn_implementation("questbench")
    # transformers asks before it begins from 5.24 on.
    with pytest.raises((UsageError, ValueError), match=r"rolled back|can be cropped"):
        model.generate(
            ids.repeat(1, 3),
            attention_mask=mask.repeat(1, 3),
            **cache_argument(model, build(model)),
            prompt_lookup_num_tokens=3,
            max_new_tokens=8,
            do_sample=False,
        )


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_change_with_the_length_are_refused_where_positions_move(kind):
    half = 32
    factors = {"short_factor": [1.0] * half, "long_factor": [2.0] * half} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 256, **factors}
    model = made("llama", rope_parameters=rope)
    assert rotations(model) == rotations(model, compiled=True) == [None, None]
    assert hf.forward(model, list(range(2, 40)), build(model, StreamingLLM(16, positions="text"))).isfinite().all()
    cache = build(model, StreamingLLM(16))
    hf.forward(model, list(range(2, 40)), cache)
    with pytest.raises(CellError, match="rotary"):
        hf.forward(model, [3], cache)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["llama", "phi3", "gpt_oss", "gemma2", "qwen3", *OTHERS])
def test_rotations_are_the_model_s_own(name, compiled):
    """YaRN's scaling (gpt-oss) and partial rotation (phi3) included: keys at one position become those at another."""
    if compiled and (reason := kernels.available()["cpu"]):
        pytest.skip(reason)
    model = turning(name)
    turns = rotations(model, compiled=compiled)
    keys = []
    for position in (3, 40):
        seen = hf.build_cache(model, Dense(), ops=OPS, dense_layers=0)
        hf.forward(model, [7], seen, position_ids=torch.tensor([[position]]))
        keys.append([None if layer.is_sliding else layer.store.gather(0)[0][:, 0] for layer in seen.layers])
    for rotate, near, far in zip(turns, *keys, strict=True):
        if near is not None:
            torch.testing.assert_close(rotate(near[None], torch.tensor([37]))[0], far, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(rotate(far[None], torch.tensor([-37]))[0], near, rtol=1e-4, atol=1e-4)


def test_the_compiled_rotation_is_taken_where_it_fits():
    if reason := kernels.available()["cpu"]:
        pytest.skip(reason)
    ours = by_difference(torch.ones(2), compiled=True).__code__
    taken = {
        name: {turn.__code__ is ours for turn in rotations(turning(name), compiled=True)}
        for name in ("llama", "phi3", "gpt_oss", "gemma3_text", "glm")
    }
    assert taken == {"llama": {True}, "phi3": {True}, "gpt_oss": {True}, "gemma3_text": {True}, "glm": {False}}


def test_layers_without_positions_are_not_turned():
    turns = rotations(tiny("smollm3"))
    x = torch.randn(1, 2, 64)
    moved = [not torch.equal(rotate(x, torch.tensor([5])), x) for rotate in turns]
    assert moved == [True, True, False, True]


class NarrowOps(ReferenceOps):
    limits = Limits(head_dims=(64,))


def test_each_layer_is_checked_by_its_own_shape():
    """Gemma 4's layers of full attention have wider heads than its sliding ones, which its configuration names."""
    kinds = ["sliding_attention", "full_attention"] * 2
    with torch.device("meta"):
        model = made("gemma4_text", num_hidden_layers=4, layer_types=kinds, head_dim=64, global_head_dim=128)
    assert [cache_shape(model, 8, index, 4).head_dim for index in range(4)] == [64, 128] * 2
    with pytest.raises(UsageError, match=r"Head dim 128: backend 'test_refusals' has kernels for 64\."):
        hf.build_cache(model, TOVA(16), ops=NarrowOps(), page_size=8, dense_layers=0)
    counted = cost_model(model, 8)
    assert counted.cache.head_dim == 128 and counted.slid(1000, 1) == 2 * counted.shape(0).entry_bytes * 512
    assert counted.paged(16, 1) == 2 * counted.shape(1).entry_bytes * 18
    assert counted.cache_read(Dense(), 1000) == counted.slid(1000, 1) + 2 * counted.shape(1).entry_bytes * 1000
