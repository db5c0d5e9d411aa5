"""Prompts in 16 bits where the processor does not multiply them: computed in fp32, stored as before."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from core_helpers import sparse_methods
from tiny import prompts, tiny

from questbench.models import _widening, hf
from questbench.models._wider import wider_logits

DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture
def narrow(request):
    """A model of its own in 16 bits."""
    return copy.deepcopy(tiny("qwen3")).to(request.param)


def prefilled(model, ids, chunk=16):
    cache = hf.build_cache(model, sparse_methods(16)["h2o"], ops="cpu", page_size=8, dense_layers=1)
    return hf.prefill(model, ids, cache, chunk=chunk)


@pytest.mark.parametrize("narrow", DTYPES, indirect=True, ids=str)
@pytest.mark.parametrize("emulated", [True, False])
def test_both_ways_are_as_near_to_the_wide_model(narrow, emulated, monkeypatch):
    ids = prompts([40])[0]
    want = wider_logits(narrow, ids)[:, -1].detach()
    monkeypatch.setattr(_widening, "emulated", lambda dtype: emulated)
    monkeypatch.setattr(_widening, "AT_ONCE", 1000)  # several blocks of outputs
    types, linear = [], F.linear

    def noted(x, *args):
        types.append(x.dtype)
        return linear(x, *args)

    monkeypatch.setattr(_widening.F, "linear", noted)
    got = prefilled(narrow, ids)
    assert got.dtype == narrow.dtype
    assert float((got.float() - want).norm() / want.norm()) < 20 * torch.finfo(narrow.dtype).eps
    assert (torch.float32 in types) == emulated
    assert not any("forward" in vars(module) for module in narrow.modules()), "all modules are as they were"


def test_what_is_left_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(_widening, "emulated", lambda dtype: asked.append(dtype) or True)
    layer = torch.nn.Linear(4, 3, dtype=torch.bfloat16)
    model = torch.nn.ModuleList([layer, torch.nn.Linear(4, 3), torch.nn.LayerNorm(4, dtype=torch.bfloat16)])
    hooked = torch.nn.Linear(4, 3, dtype=torch.bfloat16)
    hooked.forward = own = lambda x: x
    model.append(hooked)
    with _widening.widened(model, torch.bfloat16, 9):
        assert ["forward" in vars(module) for module in model] == [True, False, False, True]
        assert hooked.forward is own
        few, many = (layer(torch.ones(rows, 4, dtype=torch.bfloat16)) for rows in (2, 9))
        assert torch.equal(few[0], many[0])
    with _widening.widened(model, torch.bfloat16, 8):
        assert "forward" not in vars(layer), "a few tokens"
    with pytest.raises(KeyError), _widening.widened(model, torch.bfloat16, 9):
        raise KeyError
    assert "forward" not in vars(layer) and hooked.forward is own


def test_wide_models_and_odd_types_are_never_emulated():
    assert not any(_widening.emulated(dtype) for dtype in (torch.float32, torch.float64, torch.int8))
