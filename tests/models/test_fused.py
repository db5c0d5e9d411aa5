"""The plan in compiled steps: what it is made of, the numbers of the plan part by part, and when it is not used."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from test_static_loop import build, prefilled
from tiny import CONFIGS, prompts, tiny

from questbench import kernels
from questbench.methods.dense import Dense
from questbench.methods.quest import Quest
from questbench.models import _fused, _plan, hf, static_loop
from questbench.models.static_loop import StaticLoop

PLANNED = [name for name in CONFIGS if name not in ("gpt_oss", "smollm3")]
LENGTHS = [40, 33, 17]


@pytest.mark.parametrize("name", PLANNED)
def test_models_with_a_plan_have_compiled_steps(name: str) -> None:
    model, (ids, mask) = tiny(name), prompts(LENGTHS)
    cache, _ = prefilled(model, Dense(), ids, mask)
    loop = StaticLoop(model, cache, mask=mask)
    assert loop.path == "flat" and loop._fused is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize("lengths", [[40], LENGTHS], ids=str)
def test_compiled_steps_are_the_plan(name: str, dtype: torch.dtype, lengths: list[int]) -> None:
    """Within what rounding in other places leaves: a fraction of a per cent in 16 bits."""
    model, (ids, mask) = copy.deepcopy(tiny(name)).to(dtype), prompts(lengths)
    found = []
    for fused in (True, False):
        cache, _ = prefilled(model, Dense(), ids, mask)
        loop = StaticLoop(model, cache, mask=mask, plan="model")
        loop._follow(_plan.lay_out(model, len(lengths)), fused=fused)
        assert (loop._fused is not None) == fused
        steps, token = [], ids[:, -1]
        for _ in range(6):
            steps.append(loop.feed(token).double().clone())
            token = (token * 7 + 1) % 97
        found.append(steps)
    assert static_loop._off(*found) <= 12 * torch.finfo(dtype).eps


def test_exchanged_parts_are_used() -> None:
    """Whoever times the parts of a step puts others in their place, and then those must run."""
    model, (ids, mask) = tiny("llama"), prompts([20])
    cache, logits = prefilled(model, Dense(), ids, mask)
    loop, calls = StaticLoop(model, cache), []
    head = loop.plan.head
    loop.plan = dataclasses.replace(loop.plan, head=lambda x: calls.append(x.shape) or head(x))
    loop.feed(logits.argmax(-1))
    assert len(calls) == 1


def test_compiled_steps_that_compute_something_else_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (ids, mask) = tiny("llama"), prompts([20])
    plain = _fused._scale

    def skewed(norm):
        scale = plain(norm)
        return None if scale is None else _fused.Scale(scale.scale * 1.001, scale.epsilon)

    monkeypatch.setattr(_fused, "_scale", skewed)
    static_loop.forget(model)
    try:
        cache, _ = prefilled(model, Quest(16), ids, mask)
        loop = StaticLoop(model, cache)
        assert (loop.path, loop.reason, loop._fused) == ("flat", None, None), "part by part the plan is right"
    finally:
        static_loop.forget(model)


def test_what_is_of_another_kind_runs_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(tiny("llama"))
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.ReLU()
    assert _fused.fuse(_plan.lay_out(model, 1), 1) is None
    assert static_loop.disagreement(model, kernels.load("cpu")) is None
    ids, mask = prompts([20])
    cache = build(model, Dense())
    token = hf.prefill(model, ids, cache, mask=mask).argmax(-1)
    loop = StaticLoop(model, cache)
    assert loop.path == "flat" and loop._fused is None
    assert loop.feed(token).isfinite().all()


def test_many_rows_are_torch_s() -> None:
    assert _fused.fuse(_plan.lay_out(tiny("llama"), 9), 9) is None
    assert _fused.fuse(_plan.lay_out(tiny("llama"), 8), 8) is not None
