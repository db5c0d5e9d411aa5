"""The decode loops: logits of the model's own forward, tokens of generate(), no allocation, nothing hidden."""

from __future__ import annotations

import pytest
import torch
from core_helpers import Counter, sparse_methods
from tiny import CONFIGS, prompts, tiny

from questbench.errors import UsageError
from questbench.methods.dense import Dense
from questbench.methods.quest import Quest
from questbench.models import _plan, hf, static_loop
from questbench.models._forward import cache_argument
from questbench.models.graph_loop import FIRST, GraphLoop
from questbench.models.static_loop import StaticLoop

LENGTHS, NEW, PAGE = [40, 33, 17], 14, 8
METHODS = {"dense": Dense(), **sparse_methods(16)}
DEPLOYED = tuple(name for name, method in METHODS.items() if not method.yardstick)
UNPLANNED = {"gpt_oss": "sinks", "smollm3": "differs"}


def again(step):
    """In place of a CUDA graph: repeats the step by running it."""
    return step


def build(model, method, **options):
    return hf.build_cache(model, method, **{"ops": "cpu", "page_size": PAGE, "dense_layers": 1} | options)


def prefilled(model, method, ids, mask, **options):
    cache = build(model, method, **options)
    return cache, hf.prefill(model, ids, cache, mask=mask, chunk=16)


def generate(model, ids, mask, cache, **options):
    model.set_attn_implementation("questbench")
    options = {"max_new_tokens": NEW, "do_sample": False} | options
    return model.generate(ids, attention_mask=mask, **cache_argument(model, cache), **options)[:, ids.shape[1] :]


def stepwise(model, ids, mask, cache):
    """Greedy tokens by the model's own forward, one token at a time."""
    places = (mask.cumsum(1) - 1).clamp(min=0)
    token = hf.forward(model, ids, cache, attention_mask=mask, position_ids=places).argmax(-1)
    made = [token]
    for _ in range(NEW - 1):
        mask = torch.cat([mask, mask[:, -1:]], dim=1)
        places = places[:, -1:] + 1
        token = hf.forward(model, token[:, None], cache, attention_mask=mask, position_ids=places).argmax(-1)
        made.append(token)
    return torch.stack(made, dim=1)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_model_s_own_forward(name):
    model, (ids, mask) = tiny(name), prompts(LENGTHS)
    cache, logits = prefilled(model, Dense(), ids, mask)
    rival, _ = prefilled(model, Dense(), ids, mask)
    loop = StaticLoop(model, cache, mask=mask)
    assert loop.path == ("model" if name in UNPLANNED else "flat")
    assert UNPLANNED.get(name, "") in (loop.reason or "")
    places = mask.sum(1, keepdim=True)
    for step in range(6):
        token = logits.argmax(-1)
        mask = torch.cat([mask, mask[:, -1:]], dim=1)
        want = hf.forward(model, token[:, None], rival, attention_mask=mask, position_ids=places + step)
        logits = loop.feed(token)
        torch.testing.assert_close(logits, want, rtol=0, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("method", METHODS)
def test_generate_steps_and_loops_agree_token_for_token(name, method):
    model, (ids, mask) = tiny(name), prompts(LENGTHS)
    want = generate(model, ids, mask, build(model, METHODS[method]))
    assert torch.equal(stepwise(model, ids, mask, build(model, METHODS[method])), want)
    for plan in ("auto", "model"):
        cache, logits = prefilled(model, METHODS[method], ids, mask)
        loop = StaticLoop(model, cache, mask=mask, plan=plan)
        assert loop.generate(logits.argmax(-1), NEW) == want.tolist()
    if method in DEPLOYED:
        cache, logits = prefilled(model, METHODS[method], ids, mask)
        loop = GraphLoop(model, cache, steps=NEW, record=again)
        assert loop.generate(logits.argmax(-1), NEW) == want.tolist()
        assert all(layer.store.frozen for layer in loop.layers)


@pytest.mark.parametrize("method", ["dense", "quest", "quest-q_head", "h2o", "h2o-decode", "tova", "streaming_llm"])
def test_all_ways_agree_on_the_embedded_model(method):
    from questbench.models.loading import resolve

    loaded = resolve("constructed", dtype=torch.float32)
    text = "The secret code of the river is 40 71 93. " * 3 + "Some other words stand here, and more of them. " * 12
    ids = torch.tensor([loaded.tokenizer.encode(text + "The secret code of the river is")])
    mask, policy = torch.ones_like(ids), {"dense": Dense(), **sparse_methods(64)}[method]
    want = generate(loaded.model, ids, mask, build(loaded.model, policy), eos_token_id=None, pad_token_id=0)
    assert torch.equal(stepwise(loaded.model, ids, mask, build(loaded.model, policy)), want)
    for kind, options in ((StaticLoop, {}), (GraphLoop, {"steps": NEW, "record": again})):
        cache, logits = prefilled(loaded.model, policy, ids, mask)
        loop = kind(loaded.model, cache, **options)
        assert (loop.path, loop.linear_path) == ("flat", "compiled")
        assert loop.generate(logits.argmax(-1), NEW) == want.tolist()


@pytest.mark.parametrize("method", DEPLOYED)
def test_counting_changes_no_bit(method):
    model, (ids, mask) = tiny("llama"), prompts(LENGTHS)
    seen = []
    for observer in (None, Counter()):
        cache, logits = prefilled(model, METHODS[method], ids, mask, observer=observer)
        loop, rows = StaticLoop(model, cache), [logits]
        for _ in range(NEW):
            rows.append(loop.feed(rows[-1].argmax(-1)).clone())
        seen.append(torch.stack(rows))
    assert observer is not None and observer.visits, "the counters were on"
    assert torch.equal(*seen)


def test_rows_end_by_themselves():
    model, (ids, mask) = tiny("llama"), prompts(LENGTHS)
    cache, logits = prefilled(model, Dense(), ids, mask)
    free = StaticLoop(model, cache).generate(logits.argmax(-1), NEW)
    stops = {free[0][5], free[1][2]}
    cache, logits = prefilled(model, Dense(), ids, mask)
    loop = StaticLoop(model, cache)
    ended = loop.generate(logits.argmax(-1), NEW, stops)
    for tokens, row in zip(ended, free, strict=True):
        first = next((place for place, token in enumerate(row) if token in stops), NEW)
        assert tokens == row[:first]
    assert len(ended[1]) < NEW
    cache, logits = prefilled(model, Dense(), ids, mask)
    loop = StaticLoop(model, cache)
    assert loop.generate(logits.argmax(-1), NEW, {row[1] for row in free} | {row[0] for row in free}) == [[], [], []]
    assert loop.layers[0].store.steps == 0, "all rows were done at once: no step was made"


def storage(loop) -> list[int]:
    """Where everything that a cache holds lies, and how large it is."""
    found = []
    for layer in loop.layers:
        store = layer.store
        kept = [store.paged.k, store.paged.v, store.bounds, store.pages.table, store.positions, store.mass]
        found += [part for tensor in kept if tensor is not None for part in (tensor.data_ptr(), tensor.numel())]
    return found


@pytest.mark.parametrize("method", DEPLOYED)
def test_what_was_allocated_ahead_is_enough(method):
    model, (ids, mask), steps = tiny("llama"), prompts(LENGTHS), 5 * PAGE + 3
    cache, logits = prefilled(model, METHODS[method], ids, mask, capacity=40 + steps)
    loop = StaticLoop(model, cache)
    loop.tokens.copy_(logits.argmax(-1))
    for _ in range(1 + METHODS[method].warmup_steps):
        loop.step()  # H2O that judges by the first step drops after it, into a store of its own
    before = storage(loop)
    for _ in range(steps - 2):
        loop.step()
    assert storage(loop) == before


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "quest", "h2o", "tova", "streaming_llm"])
def test_ten_thousand_tokens_allocate_nothing_and_slow_down_only_as_they_grow(method):
    import time

    from questbench.models.loading import resolve

    model, steps = resolve("constructed", dtype=torch.float32).model, 10_000
    ids = torch.randint(3, 200, (1, 512), generator=torch.Generator().manual_seed(0))
    policy = {"dense": Dense(), **sparse_methods(256)}[method]
    cache = build(model, policy, capacity=512 + steps, page_size=16)
    first = hf.prefill(model, ids, cache).argmax(-1)
    loop = StaticLoop(model, cache)
    loop.tokens.copy_(first)
    loop.step()
    before, seconds = storage(loop), []
    for _ in range(steps - 1):
        start = time.perf_counter()
        loop.step()
        seconds.append(time.perf_counter() - start)
    assert storage(loop) == before
    assert max(loop.layers[0].store.seen) == 512 + steps
    # The quietest steps of the first and of the last thousand, less what reading the longer text takes.
    early, late = (sorted(part)[20] for part in (seconds[:1000], seconds[-1000:]))
    read = sum(layer.store.held[0] * 2 * layer.store.kv_heads * layer.store.head_dim * 4 for layer in loop.layers)
    assert late <= 1.3 * early + read / 5e9, (early, late)


def test_going_back_gives_the_same_tokens():
    model, (ids, _) = tiny("llama"), prompts([40])
    for kind, options in ((StaticLoop, {}), (GraphLoop, {"steps": 2 * NEW, "record": again})):
        cache, logits = prefilled(model, METHODS["quest"], ids, torch.ones_like(ids))
        loop = kind(model, cache, **options)
        loop.tokens.copy_(logits.argmax(-1))
        for _ in range(FIRST):
            loop.step()
        mark = loop.mark()
        made = [loop.step().tolist() for _ in range(NEW)]
        assert loop.rewind(mark)
        assert [loop.step().tolist() for _ in range(NEW)] == made
    evicting, logits = prefilled(model, METHODS["h2o"], ids, torch.ones_like(ids))
    loop = StaticLoop(model, evicting)
    mark = loop.mark()
    loop.step()
    assert not loop.rewind(mark)
    assert loop.layers[0].store.held == [40] and loop.layers[1].store.held == [15]


def test_going_back_over_the_recording_of_a_batch_with_windows():
    """A window that is not full moves into pages when the step is recorded, rows of any length."""
    model, (ids, mask) = tiny("gemma2"), prompts([3, 1])
    cache, logits = prefilled(model, Dense(), ids, mask)
    loop = GraphLoop(model, cache, mask=mask, steps=2 * NEW, record=again)
    loop.tokens.copy_(logits.argmax(-1))
    mark = loop.mark()
    made = [loop.step().tolist() for _ in range(FIRST + 1)]
    loop.rewind(mark)
    assert [loop.step().tolist() for _ in range(FIRST + 1)] == made


def test_masks_are_kept_for_windows_alone():
    ids, mask = prompts(LENGTHS)
    for name, kept in (("llama", False), ("gemma2", True)):
        cache, logits = prefilled(tiny(name), Dense(), ids, mask)
        loop = StaticLoop(tiny(name), cache, mask=mask)
        mark = loop.mark() if kept else None
        loop.generate(logits.argmax(-1), 4)
        assert (loop._mask is not None) == kept
        if mark is not None:
            assert loop._mask.shape[1] == 43
            loop.rewind(mark)
            assert loop._mask.shape[1] == 40


def test_a_plan_that_computes_something_else_is_found_out(monkeypatch):
    model, (ids, mask) = tiny("qwen3"), prompts([20])
    plain = _plan._norm

    def skewed(module):
        norm = plain(module)
        return lambda x: norm(x) * 1.001

    monkeypatch.setattr(_plan, "_norm", skewed)
    static_loop.forget(model)
    try:
        cache, _ = prefilled(model, Quest(16), ids, mask)
        loop = StaticLoop(model, cache)
        assert loop.path == "model" and "differs from its forward" in (loop.reason or "")
    finally:
        static_loop.forget(model)


def test_an_empty_cache_is_refused():
    with pytest.raises(UsageError, match="holds a prompt"):
        StaticLoop(tiny("llama"), build(tiny("llama"), Dense()))
