"""DuoAttention: the pattern file, the split over all layers together, heads that are really stored apart."""

import json

import numpy as np
import pytest
import torch
from core_helpers import HEAD_DIM, PAGE, SCORING

from questbench import attention, kernels
from questbench.cache import GroupedLayer, LayerCache, fork_layer, make_layer
from questbench.errors import UsageError
from questbench.methods._base import CacheShape
from questbench.methods.dense import Dense
from questbench.methods.duo_attention import DuoAttention

LAYERS, KV_HEADS, HEADS = 4, 4, 8
WEIGHTS = np.random.default_rng(7).permutation(LAYERS * KV_HEADS).reshape(LAYERS, KV_HEADS) / 16
WEIGHTS[0] = [0.97, 0.98, 0.96, 0.99]
WEIGHTS[3] = [0.001, 0.002, 0.003, 0.004]


@pytest.fixture
def pattern(tmp_path):
    folder = tmp_path / "some-model"
    folder.mkdir()
    np.savetxt(folder / "full_attention_heads.tsv", WEIGHTS, delimiter="\t")
    (folder / "config.json").write_text(json.dumps({"sink_size": 3, "recent_size": 9}))
    return str(folder / "full_attention_heads.tsv")


def shape(index, layers=LAYERS, kv_heads=KV_HEADS):
    return CacheShape(2 * kv_heads, kv_heads, HEAD_DIM, PAGE, 4, index, layers)


def retrieval(method, layers=LAYERS):
    """[layers, KV heads] bool."""
    found = np.zeros((layers, KV_HEADS), dtype=bool)
    for index in range(layers):
        for group in method.head_groups(shape(index, layers)):
            found[index, list(group.heads)] = isinstance(group.method, Dense)
    return found


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25, 0.5, 0.6, 0.75, 0.99, 1.0])
def test_the_quantile_is_over_all_layers_together(pattern, sparsity):
    want = np.quantile(WEIGHTS, sparsity) <= WEIGHTS if sparsity < 1 else np.zeros_like(WEIGHTS, dtype=bool)
    assert np.array_equal(retrieval(DuoAttention(16, pattern, sparsity)), want)


def test_equal_weights_are_told_apart_by_their_place(tmp_path):
    file = tmp_path / "full_attention_heads.tsv"
    file.write_text("1 1 1 1\n0.5 1 0.5 0.5\n\n")
    found = [DuoAttention(16, str(path), sparsity=0.5) for path in (file, tmp_path)]
    assert retrieval(found[0], layers=2).tolist() == [[True] * 4, [False] * 4] and found[0] != found[1]
    assert retrieval(found[1], layers=2).tolist() == [[True] * 4, [False] * 4]


def test_sinks_are_the_pattern_s_unless_told_and_the_record_says_so(pattern, tmp_path):
    method = DuoAttention(20, pattern)
    (stream,) = (g.method for g in method.head_groups(shape(3)))
    assert (stream.budget, stream.sinks, stream.positions) == (20, 3, "text")
    about = method.arguments(PAGE)
    assert about["pattern"] == "some-model/full_attention_heads.tsv" and about["sinks"] == 3
    assert len(about["pattern_sha256"]) == 16
    assert DuoAttention(20, pattern, sinks=7).arguments(PAGE)["sinks"] == 7
    bare = tmp_path / "full_attention_heads.tsv"
    bare.write_text("1\n")
    assert DuoAttention(20, str(bare)).arguments(PAGE)["sinks"] == 128


def test_what_cannot_be_used_says_where_patterns_come_from(pattern, tmp_path):
    with pytest.raises(UsageError, match="needs a pattern") as error:
        DuoAttention(64).check(PAGE)
    assert "github.com/mit-han-lab/duo-attention" in (error.value.hint or "")
    broken = tmp_path / "broken.tsv"
    for text in ("", "1 2\n3\n", "1 x\n", "1 nan\n"):
        broken.write_text(text)
        with pytest.raises(UsageError, match="no table"):
            DuoAttention(64, str(broken)).check(PAGE)
    with pytest.raises(UsageError, match="cannot be read"):
        DuoAttention(64, str(tmp_path / "nowhere.tsv")).check(PAGE)
    with pytest.raises(UsageError, match="4 layers, and this model has 5"):
        DuoAttention(64, pattern).head_groups(shape(0, 5))
    with pytest.raises(UsageError, match="4 KV heads per layer, and this model has 2"):
        DuoAttention(64, pattern).head_groups(shape(0, kv_heads=2))
    with pytest.raises(UsageError, match="a share"):
        DuoAttention(64, pattern, sparsity=1.5).check(PAGE)
    with pytest.raises(UsageError, match="at least 5"):
        DuoAttention(4, pattern).check(PAGE)


def test_steps_equal_attention_head_by_head(ops, pattern):
    """Prompt, steps, a later turn, steps: float64 attention over what each KV head may see, at its true positions."""
    method, rows = DuoAttention(16, pattern), 2
    index = next(i for i, row in enumerate(retrieval(method)) if 0 < row.sum() < KV_HEADS)
    full = retrieval(method)[index]
    layer = make_layer(method, ops, shape(index), rows=rows)
    assert isinstance(layer, GroupedLayer)
    generator = torch.Generator().manual_seed(0)
    keys = values = torch.zeros((rows, KV_HEADS, 0, HEAD_DIM), dtype=torch.float64)
    kept = [list(range(0)) for _ in range(KV_HEADS)]
    for count in (50, 1, 1, 1, 9, 1, 1):
        wide = torch.randn((rows, HEADS + 2 * KV_HEADS, count, HEAD_DIM), generator=generator)
        q, k, v = wide.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
        keys, values = torch.cat([keys, k.double()], dim=2), torch.cat([values, v.double()], dim=2)
        total = keys.shape[2]
        layer.append(k, v)
        if count == 1:
            out = attention.decode(layer, q[:, :, 0].contiguous(), SCORING)[:, :, None]
        else:
            out = attention.prefill(layer, q, k, v, SCORING)
            layer.end_prefill()
        for head in range(HEADS):
            own = head // 2
            places = [*kept[own], *range(total - count, total)]
            seen = torch.tensor(places) <= torch.arange(total - count, total)[:, None]
            logits = q[:, head].double() @ keys[:, own, places].transpose(1, 2) * SCORING.scale
            p = torch.softmax(logits.masked_fill(~seen, -torch.inf), dim=-1)
            torch.testing.assert_close(out[:, head], (p @ values[:, own, places]).float(), rtol=1e-4, atol=1e-5)
        kept = [list(range(total)) if full[own] else [*range(3), *range(total - 12, total)] for own in range(KV_HEADS)]
    assert layer.resident(0) == (full.sum() * 64 + (~full).sum() * 15) / KV_HEADS


def test_a_layer_of_one_kind_is_stored_whole(pattern):
    ops = kernels.load("reference")
    for index, kind in ((0, Dense), (3, None)):
        layer = make_layer(DuoAttention(16, pattern), ops, shape(index), rows=1)
        assert isinstance(layer, LayerCache) and isinstance(layer.method, Dense) == (kind is Dense)


def test_a_fork_of_a_dense_cache_holds_less(pattern, ops):
    method = DuoAttention(16, pattern)
    index = next(i for i, row in enumerate(retrieval(method)) if 0 < row.sum() < KV_HEADS)
    full = int(retrieval(method)[index].sum())
    base = make_layer(Dense(), ops, shape(index), rows=1)
    base.append(torch.randn(1, KV_HEADS, 200, HEAD_DIM), torch.randn(1, KV_HEADS, 200, HEAD_DIM))
    twin = fork_layer(base, method)
    twin.end_prefill()
    entry = 2 * HEAD_DIM * 4
    assert base.bytes == (KV_HEADS * 200 * entry, 0)
    assert twin.bytes == ((full * 200 + (KV_HEADS - full) * 16) * entry, 0)
    assert method.bytes_read(201, shape(index)) == (full * 201 + (KV_HEADS - full) * 16) * entry


def test_a_layer_alone_is_one_of_the_usual_kind(pattern):
    method = DuoAttention(16, pattern)
    counts = retrieval(method).sum(1)
    typical = int(np.abs(counts - counts.mean()).argmin())
    alone = {group.heads for group in method.head_groups(shape(0, 1))}
    assert alone == {group.heads for group in method.head_groups(shape(typical))}
    mean = counts.mean() / KV_HEADS
    assert method.tokens_visible(100, PAGE) == -int(-(mean * 100 + (1 - mean) * 16) // 1)
