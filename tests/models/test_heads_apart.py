"""A model whose layers differ in which KV heads keep everything: every way of decoding agrees, and forks do too."""

from __future__ import annotations

import pytest
import torch
from core_helpers import Counter
from test_static_loop import NEW, again, generate, prefilled, stepwise
from tiny import prompts, tiny

from questbench.cache import GroupedLayer
from questbench.errors import UsageError
from questbench.methods.dense import Dense
from questbench.methods.duo_attention import DuoAttention
from questbench.models import hf
from questbench.models.graph_loop import FIRST, GraphLoop
from questbench.models.static_loop import StaticLoop

LENGTHS, PAGE = [40, 33, 17], 8


@pytest.fixture
def method(tmp_path):
    """Of the layers under it, one has heads of both kinds, one keeps everything, one nothing but windows."""
    file = tmp_path / "full_attention_heads.tsv"
    file.write_text("1 0\n0.2 0.9\n0.8 0.7\n0.1 0.3\n")
    return DuoAttention(16, str(file), sparsity=0.5, sinks=3)


def build(model, method, **options):
    return hf.build_cache(model, method, **{"ops": "cpu", "page_size": PAGE, "dense_layers": 1} | options)


def test_all_ways_agree_token_for_token(method):
    model, (ids, mask) = tiny("llama"), prompts(LENGTHS)
    cache = build(model, method)
    want = generate(model, ids, mask, cache)
    assert [isinstance(layer.store, GroupedLayer) for layer in cache.layers] == [False, True, False, False]
    assert torch.equal(stepwise(model, ids, mask, build(model, method)), want)
    dense = generate(model, ids, mask, build(model, Dense()))
    assert not torch.equal(dense, want), "the method did nothing"
    for kind, options in ((StaticLoop, {}), (GraphLoop, {"steps": NEW, "record": again})):
        cache, logits = prefilled(model, method, ids, mask)
        loop = kind(model, cache, mask=mask, **options)
        assert loop.generate(logits.argmax(-1), NEW) == want.tolist()
    base, logits = prefilled(model, Dense(), ids, mask, dense_layers=0, bounds=True)
    loop = StaticLoop(model, hf.fork(base, method, dense_layers=1))
    assert loop.generate(logits.argmax(-1), NEW) == want.tolist()
    again_from = StaticLoop(model, base).generate(logits.argmax(-1), NEW)
    assert again_from == dense.tolist(), "the fork changed its base"


def test_a_row_of_a_batch_is_what_it_is_alone(method):
    model, (ids, mask) = tiny("llama"), prompts(LENGTHS)
    want = generate(model, ids, mask, build(model, method))
    for row, length in enumerate(LENGTHS):
        alone = ids[row : row + 1, -length:], mask[row : row + 1, -length:]
        assert torch.equal(generate(model, *alone, build(model, method)), want[row : row + 1])


def test_a_loop_goes_back_only_while_no_window_has_dropped(method):
    model, (ids, _) = tiny("llama"), prompts([8])
    cache, logits = prefilled(model, method, ids, torch.ones_like(ids))
    loop = GraphLoop(model, cache, steps=20, record=again)
    loop.tokens.copy_(logits.argmax(-1))
    for _ in range(FIRST):
        loop.step()
    mark = loop.mark()
    made = [loop.step().tolist() for _ in range(4)]
    assert loop.rewind(mark) and [loop.step().tolist() for _ in range(4)] == made
    for _ in range(4):
        loop.step()
    assert not loop.rewind(mark)
    held = {tuple(part.held) for layer in loop.layers for part in layer.store.parts}
    assert held == {(8 + FIRST,), (15,)}, "what has dropped entries stays as it is, the others go back"


def test_counts_are_means_over_heads(method):
    model, (ids, mask), counter = tiny("llama"), prompts([40]), Counter()
    cache, logits = prefilled(model, method, ids, mask, observer=counter)
    StaticLoop(model, cache).generate(logits.argmax(-1), 2)
    assert [visits[0].sum(-1).tolist() for visits in counter.visits] == [[82, 82], [32, 82], [82, 82], [32, 32]]
    assert [resident[0] for resident in counter.resident] == [41, (41 + 16) / 2, 41, 16]


def test_a_pattern_of_another_model_is_refused_before_a_prompt_runs(method, tmp_path):
    model = tiny("llama")
    other = tmp_path / "other.tsv"
    other.write_text("1 0\n" * 5)
    with pytest.raises(UsageError, match="5 layers, and this model has 4"):
        build(model, DuoAttention(16, str(other), sinks=3))
    other.write_text("1 0 0\n" * 4)
    with pytest.raises(UsageError, match="3 KV heads per layer, and this model has 2"):
        hf.fork(build(model, Dense()), DuoAttention(16, str(other), sinks=3))
