"""Captured decode loops on a GPU: replays choose the tokens that steps one by one would; so does FlashInfer in them."""

from __future__ import annotations

import functools

import pytest
import torch
from core_helpers import sparse_methods
from gpu_bodies import DEVICE, REHEARSED, backend, flashinfer
from test_gpu_models import LENGTHS, PAGE, model_there, prompt

from questbench.baselines._loop import BaselineLoop
from questbench.experiments import e2e
from questbench.experiments.e2e import E2EConfig
from questbench.kernels._ops import Ops
from questbench.methods.dense import Dense
from questbench.models import hf
from questbench.models.graph_loop import GraphLoop
from questbench.models.shapes import SHAPES, Shape
from questbench.models.static_loop import StaticLoop

pytestmark = pytest.mark.gpu

NEW = 12 if REHEARSED else 40
METHODS = {name: method for name, method in {"dense": Dense(), **sparse_methods(16)}.items() if not method.yardstick}
RECORD = {"record": lambda step: step} if REHEARSED else {}


def prefilled(name: str, method, there: Ops):
    ids, mask = prompt()
    cache = hf.build_cache(model_there(name), method, ops=there, page_size=PAGE, dense_layers=1)
    return cache, hf.prefill(model_there(name), ids, cache, mask=mask, chunk=16), mask


def follows(name: str, method, there: Ops, loop: StaticLoop, first: torch.Tensor) -> None:
    """Every token of ``loop`` is, but for rounding, the best that steps one by one find behind the ones before it."""
    texts = torch.tensor(loop.generate(first, NEW), device=first.device)
    cache, logits, mask = prefilled(name, method, there)
    steps = StaticLoop(model_there(name), cache, mask=mask)
    for place in range(NEW):
        scores = logits.float()
        behind = scores.amax(1) - scores.gather(1, texts[:, place : place + 1])[:, 0]
        assert (behind <= 0.03 * scores.abs().amax(1)).all(), f"token {place}: {behind.tolist()}"
        logits = steps.feed(texts[:, place])


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("method", METHODS)
def test_replays_go_on_as_steps_do(name: str, method: str, there: Ops) -> None:
    policy = METHODS[method]
    cache, logits, mask = prefilled(name, policy, there)
    loop = GraphLoop(model_there(name), cache, steps=NEW, mask=mask, **RECORD)
    follows(name, policy, there, loop, logits.argmax(-1))
    assert [layer.store.seen for layer in cache.layers] == [[length + NEW - 1 for length in LENGTHS]] * 4


@pytest.mark.parametrize("path", ["cuda-core", "tensor-core", "xqa", "trtllm-gen"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_flashinfer_in_the_loop(name: str, path: str, there: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    module = flashinfer(monkeypatch)
    if REHEARSED:
        from fake_planned import Device

        library = Device().library()
        monkeypatch.setattr(module, "library", lambda: library)
    if path not in module.names(torch.device(DEVICE)) or (name == "gemma2" and "-core" not in path):
        pytest.skip(f"{path} does not work here")
    cache, logits, mask = prefilled(name, Dense(), there)
    make = functools.partial(module.make, path)
    loop = BaselineLoop(model_there(name), cache, steps=NEW, make=make, mask=mask, **RECORD)
    follows(name, Dense(), there, loop, logits.argmax(-1))


def test_a_cell_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    backend()
    monkeypatch.setitem(SHAPES, "small", Shape("llama", 4, 512, 1024, 8, 2, 64, 1024, 1e4, 8192))
    methods = ["quest", "h2o", "tova", "streaming_llm"]
    options = {"model": "shape:small", "seq_lens": [2048], "budgets": [256], "batch": [2], "dtype": ["fp16"]}
    config = E2EConfig(methods=methods, device=[DEVICE], max_seconds=0.5, prefill_rounds=1, **options)  # type: ignore[arg-type]
    e2e.check(config)
    records = [record for unit in e2e.run(config) for record in unit.records]
    totals = {r.method: r for r in records if r.metric == "tpot" and r.params["stage"] == "total"}
    assert set(totals) >= {"dense", *methods}
    for name in ("dense", *methods):
        assert totals[name].status == "ok" and totals[name].stats["loop"] == ("eager" if REHEARSED else "graph")
    if not REHEARSED:
        assert "flashinfer" in totals
        if totals["flashinfer"].status == "ok":
            over = [r for r in records if r.metric == "speedup" and r.params.get("baseline") == "flashinfer"]
            assert {r.method for r in over} == {"dense", *methods} and all(r.value > 0 for r in over)
