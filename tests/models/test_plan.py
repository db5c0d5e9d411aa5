"""The flat plan's parts are recognised by what they compute, and the whole is judged by what rounding explains."""

import copy
import dataclasses

import pytest
import torch
from tiny import BASE, WIDE, tiny
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from questbench import kernels
from questbench.methods.dense import Dense
from questbench.models import _plan, hf, static_loop
from questbench.models._wider import wider_logits

BF16, FP32 = torch.bfloat16, torch.float32
IDS = torch.linspace(1, 96, 8).long()[None]


@pytest.mark.parametrize("dtype", [BF16, torch.float16, FP32])
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma3RMSNorm])
@pytest.mark.parametrize("span", [(-0.5, 1.5), (5.0, 60.0), (0.0, 0.0)])
def test_norms_are_told_apart_by_what_they_compute(dtype, kind, span):
    """Weights of 60 differ from one plus them by less than a bf16 rounding of the largest."""
    norm = kind(64, eps=1e-6).to(dtype)
    norm.weight.data = torch.linspace(*span, 64).to(dtype)
    found = _plan._norm(norm)
    assert found is not norm, "the fused form was found"
    x = torch.randn((3, 64), generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = copy.deepcopy(norm).float()(x.float())
    off = (found(x).float() - exact).abs()
    assert bool((off <= 2 * torch.finfo(dtype).eps * exact.abs() + 1e-12).all())


def test_other_norms_stay_modules():
    class Skewed(LlamaRMSNorm):
        def forward(self, x):
            return super().forward(x) * 1.0001

    layer_norm = nn.LayerNorm(64)
    for norm in (Skewed(64), layer_norm, LlamaRMSNorm(64).to(BF16)):
        fused = _plan._norm(norm) is not norm
        assert fused == (type(norm) is LlamaRMSNorm)


def steep(kind, factor, dtype):
    """A model with large weights and sharp attention, which enlarge what rounding leaves."""
    torch.manual_seed(0)
    extra = {"sliding_window": 8, "query_pre_attn_scalar": 64, "num_hidden_layers": 6} if kind == "gemma3_text" else {}
    config = AutoConfig.for_model(kind, **(BASE | WIDE | extra))
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data.uniform_(2, 20)
        elif "embed" not in name and "lm_head" not in name:
            parameter.data *= factor
    return model.to(dtype)


def rounding(model):
    """How far the model's own forward is from itself in a wider dtype."""
    cache = hf.build_cache(model, Dense(), dense_layers=0, ops="cpu")
    own = hf.forward(model, IDS, cache, all_logits=True)
    return static_loop._off([own.double()], [wider_logits(model, IDS).double()])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_rounding_of_the_model_s_own_is_no_reason_to_refuse_its_plan(kind, mode, monkeypatch):
    model = steep(kind, 4, BF16)
    # As if the fixed limit were below this model's rounding, as 5e-2 is below that of real ones.
    monkeypatch.setattr(static_loop, "PLAIN_LIMIT", {})
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    with mode():
        assert static_loop.disagreement(model, kernels.load("cpu")) is None
        assert wider_logits(model, IDS).dtype == FP32
    assert before == {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert {parameter.dtype for parameter in model.parameters()} == {BF16}


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_in_fp32_the_plan_is_held_against_fp64(kind):
    model = steep(kind, 2, FP32)
    assert wider_logits(model, IDS).dtype == torch.float64
    assert rounding(model) < 1e-4
    assert static_loop.disagreement(model, kernels.load("cpu")) is None


@pytest.mark.parametrize(
    ("shares", "allowed"),
    [
        ((1e-6, 1e-6, 5e-5, 1e-6, 1e-6), True),
        ((1e-6, 5e-5, 5e-5, 1e-6, 1e-6), False),
        ((1e-6, 1e-6, 5e-4, 1e-6, 1e-6), False),
        ((1e-6, 1e-6, float("nan"), 1e-6, 1e-6), False),
    ],
)
def test_one_step_that_rounding_tips_is_allowed_and_no_more(shares, allowed):
    want = [torch.ones(4, dtype=torch.float64) for _ in shares]
    got = [step * (1 + share) for step, share in zip(want, shares, strict=True)]
    assert not static_loop._off(got, want) <= 2e-6
    assert static_loop._tipped(got, want, 2e-6) is allowed


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_a_plan_that_lacks_a_part_is_found_out_in_any_dtype(dtype, monkeypatch):
    model, plain = copy.deepcopy(tiny("qwen3")).to(dtype), _plan._block
    monkeypatch.setattr(_plan, "_block", lambda *args: dataclasses.replace(plain(*args), q_norm=None, k_norm=None))
    assert "differs from its forward" in (static_loop.disagreement(model, kernels.load("cpu")) or "")


def test_where_no_wider_dtype_runs_the_plan_is_held_against_the_model_itself(monkeypatch):
    model = copy.deepcopy(tiny("llama"))
    monkeypatch.setattr(static_loop, "wider_logits", lambda *args: None)
    assert static_loop.disagreement(model, kernels.load("cpu")) is None
