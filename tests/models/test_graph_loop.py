"""Captured steps, with replay replaced by running the step: windows, room, going back, and what is refused."""

from __future__ import annotations

import contextlib

import pytest
import torch
from core_helpers import Counter, sparse_methods
from test_static_loop import again, prefilled
from tiny import BASE, prompts, tiny
from transformers import AutoConfig, AutoModelForCausalLM

from questbench.errors import CellError, PrerequisiteError, UsageError
from questbench.methods._window import Window
from questbench.methods.dense import Dense
from questbench.methods.h2o import H2O
from questbench.models import graph_loop
from questbench.models._mark import held_by_part
from questbench.models.graph_loop import FIRST, GraphLoop
from questbench.models.hf_cache import MethodLayer
from questbench.models.static_loop import StaticLoop


@pytest.mark.parametrize("kind", [StaticLoop, GraphLoop])
@pytest.mark.parametrize("method", ["h2o", "tova", "streaming_llm"])
def test_what_has_dropped_nothing_goes_back_too(method, kind):
    """Timed again and again, a text below the budget must not grow up to it."""
    model, (ids, _) = tiny("llama"), prompts([40])
    policy = sparse_methods(100)[method]
    cache, logits = prefilled(model, policy, ids, torch.ones_like(ids))
    options = {"steps": FIRST + 4, "record": again} if kind is GraphLoop else {}
    loop = kind(model, cache, **options)
    loop.tokens.copy_(logits.argmax(-1))
    for _ in range(FIRST):
        loop.step()
    mark, made = loop.mark(), []
    for _ in range(20):
        made.append([loop.step().tolist() for _ in range(4)])
        assert loop.rewind(mark) == (method != "h2o")  # sums of mass are not taken back
        assert [layer.store.held for layer in loop.layers] == [[40 + FIRST]] * 4
    assert all(tokens == made[0] for tokens in made)
    if kind is GraphLoop:
        for _ in range(4):
            loop.step()
        with pytest.raises(UsageError, match="7 steps"):
            loop.step()


def test_pages_of_a_captured_step_stay_where_they_are():
    model, (ids, mask) = tiny("llama"), prompts([40])
    cache, _ = prefilled(model, Dense(), ids, mask)
    loop = GraphLoop(model, cache, steps=FIRST + 4, record=again)
    for _ in range(FIRST + 1):
        loop.step()
    with pytest.raises(CellError, match="cannot move"):
        loop.layers[0].store.pool.allocate(10_000)


@pytest.mark.every_pair
@pytest.mark.parametrize("page_size", [4, 8, 32])
@pytest.mark.parametrize("name", ["gemma2", "mistral-sliding"])
@pytest.mark.parametrize("lengths", [[40, 33, 17], [3, 1], [5, 30]], ids=str)
def test_sliding_windows_are_captured(name, lengths, page_size):
    model, (ids, mask), steps = tiny(name), prompts(lengths), 30
    cache, logits = prefilled(model, Dense(), ids, mask, page_size=page_size)
    want = StaticLoop(model, cache, mask=mask, plan="model").generate(logits.argmax(-1), steps)
    cache, logits = prefilled(model, Dense(), ids, mask, page_size=page_size)
    loop = GraphLoop(model, cache, steps=steps, record=again, mask=mask)
    assert loop.generate(logits.argmax(-1), steps) == want
    windows = [layer.store for layer in cache.layers if isinstance(layer.method, Window)]
    assert len(windows) == (2 if name == "gemma2" else 4)
    for store in windows:
        assert store.held == [7] * len(lengths) and store.seen == [length + steps - 1 for length in lengths]
        for row, seen in enumerate(store.seen):
            assert sorted(store.positions[row, 0, :7].tolist()) == list(range(seen - 7, seen))


@pytest.mark.parametrize("plan", ["auto", "model"])
@pytest.mark.parametrize("steps", [1, FIRST, FIRST + 1])
@pytest.mark.parametrize("kind", [StaticLoop, GraphLoop])
def test_short_windows_go_back(kind, steps, plan):
    """Before, in and after the step that is captured; a text below the window must not grow up to it."""
    model, (ids, _) = tiny("gemma2"), prompts([2])
    cache, logits = prefilled(model, Dense(), ids, torch.ones_like(ids))
    if kind is GraphLoop and plan == "model":
        pytest.skip("cannot be captured")
    options = {"steps": 20, "record": again} if kind is GraphLoop else {"plan": plan}
    loop = kind(model, cache, **options)
    loop.tokens.copy_(logits.argmax(-1))
    for _ in range(steps):
        loop.step()
    mark, made = loop.mark(), []
    for _ in range(8):
        made.append([loop.step().tolist() for _ in range(7 - 2 - steps)])
        assert loop.rewind(mark)
    assert made[0] and all(tokens == made[0] for tokens in made)
    assert {max(held_by_part(layer, loop.places[:, 0].tolist())[0]) for layer in cache.layers} == {2 + steps}
    slides = [layer for layer in cache.layers if not isinstance(layer, MethodLayer)]
    assert {layer.keys.shape[2] for layer in slides} == ({2 + steps} if kind is StaticLoop else set())
    for _ in range(9):
        loop.step()
    assert not loop.rewind(mark), "windows have dropped entries"


def test_the_first_steps_run_where_the_capture_will(monkeypatch):
    model, (ids, mask), made = tiny("llama"), prompts([20]), []

    @contextlib.contextmanager
    def beside(device):
        made.append(("in", device.type))
        yield
        made.append("out")

    monkeypatch.setattr(graph_loop, "beside", beside)
    cache, _ = prefilled(model, Dense(), ids, mask)
    loop = GraphLoop(model, cache, steps=9, record=lambda step: made.append("capture") or step)
    for _ in range(FIRST + 2):
        loop.step()
    assert made == [("in", "cpu"), "out"] * FIRST + ["capture"]


def test_frequencies_that_change_and_backends_that_ask_the_host_cannot_be_captured():
    ids, mask = prompts([20])
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **(BASE | {"rope_parameters": rope}))).eval()
    cache, _ = prefilled(model, Dense(), ids, mask)
    with pytest.raises(PrerequisiteError, match="frequencies"):
        GraphLoop(model, cache, steps=2, record=again)
    cache, _ = prefilled(tiny("llama"), Dense(), ids, mask, ops="reference")
    with pytest.raises(PrerequisiteError, match="'reference' asks the host"):
        GraphLoop(tiny("llama"), cache, steps=2, record=again)


def test_a_graph_has_room_for_its_steps_and_no_more():
    model, (ids, mask) = tiny("llama"), prompts([20])
    cache, _ = prefilled(model, Dense(), ids, mask)
    loop = GraphLoop(model, cache, steps=6, record=again)
    for _ in range(6):
        loop.step()
    with pytest.raises(UsageError, match="6 steps"):
        loop.step()
    with pytest.raises(UsageError, match="chooses its own tokens"):
        loop.feed([1])
    cache, _ = prefilled(model, H2O(16), ids, mask, dense_layers=0)
    loop = GraphLoop(model, cache, steps=2, record=again)
    for _ in range(20):
        loop.step()  # what drops as much as it takes needs no room


def test_what_cannot_be_captured_says_why():
    ids, mask = prompts([20])
    for name, why in (("gpt_oss", "sinks"), ("smollm3", "differs")):
        cache, _ = prefilled(tiny(name), Dense(), ids, mask)
        with pytest.raises(PrerequisiteError, match=why):
            GraphLoop(tiny(name), cache, steps=2, record=again)
    cache, _ = prefilled(tiny("llama"), Dense(), ids, mask, observer=Counter())
    with pytest.raises(PrerequisiteError, match="observer"):
        GraphLoop(tiny("llama"), cache, steps=2, record=again)
    layer = prefilled(tiny("llama"), H2O(16, score_from="decode"), ids, mask)[0].layers[1].store
    with pytest.raises(UsageError, match="drop first"):
        layer.freeze(4)
