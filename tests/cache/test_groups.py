"""Layers whose KV heads are stored in groups: together they do what each head's own method says, and share nothing."""

from dataclasses import dataclass

import pytest
import torch
from core_helpers import HEAD_DIM, PAGE, SCORING, Counter, same, state

from questbench import attention
from questbench.cache import GroupedLayer, LayerCache, fork_layer, make_layer
from questbench.methods._base import CacheShape, HeadGroup
from questbench.methods.dense import Dense
from questbench.methods.h2o import H2O
from questbench.methods.streaming_llm import StreamingLLM
from questbench.methods.tova import TOVA

HEADS, KV_HEADS, LENGTHS = 8, 4, [37, 12]
SHAPE = CacheShape(HEADS, KV_HEADS, HEAD_DIM, PAGE, 4)
WINDOW = StreamingLLM(16, positions="text")


@dataclass(frozen=True)
class Halves(Dense):
    """Heads 0 and 2 keep everything, 1 a window, 3 what H2O keeps."""

    def head_groups(self, shape):
        return HeadGroup((1,), WINDOW), HeadGroup((2, 0), Dense()), HeadGroup((3,), H2O(16))

    @property
    def keeps_all(self):
        return False


def entries(generator, count, rows=2):
    wide = torch.randn((rows, HEADS + 2 * KV_HEADS, count, HEAD_DIM), generator=generator)
    return wide.split([HEADS, KV_HEADS, KV_HEADS], dim=1)


def feed(layer, generator, counts=None, more=False, resumed=False, n=37):
    q, k, v = entries(generator, n)
    layer.append(k, v, counts)
    out = attention.prefill(layer, q, k, v, SCORING, counts, frozenset({"sum"}), more=more, resumed=resumed)
    if not more:
        layer.end_prefill()
    return out


def step(layers, generator, observer=None):
    q, k, v = entries(generator, 1)
    outs = []
    for layer in layers:
        layer.append(k, v)
        outs.append(attention.decode(layer, q[:, :, 0].contiguous(), SCORING, observer))
    return outs


def make(method, ops):
    return make_layer(method, ops, SHAPE, rows=2)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_heads_are_taken_apart_and_joined_again(ops):
    layer = make(Halves(), ops)
    assert isinstance(layer, GroupedLayer) and [part.kv_heads for part in layer.parts] == [1, 2, 1]
    x = torch.randn(2, HEADS, 5)
    assert torch.equal(layer.join(layer.split(x)), x)
    assert torch.equal(layer.split(x)[1], x[:, [4, 5, 0, 1]])
    assert isinstance(make(Dense(), ops), LayerCache)


@pytest.mark.parametrize("forked", [False, True])
def test_each_head_does_what_its_method_does_alone(ops, forked, generator):
    base, alone = make(Dense(), ops), [make(method, ops) for method in (Dense(), WINDOW, Dense(), H2O(16))]
    grouped = base if forked else make(Halves(), ops)
    generators = [torch.Generator().manual_seed(1) for _ in range(5)]
    first = feed(grouped, generators[0], LENGTHS)
    wanted = [feed(layer, own, LENGTHS) for layer, own in zip(alone, generators[1:], strict=True)]
    assert all(
        torch.equal(first[:, 2 * head : 2 * head + 2], out[:, 2 * head : 2 * head + 2])
        for head, out in enumerate(wanted)
    )
    if forked:
        before = state(base)
        grouped = fork_layer(base, Halves())
        grouped.end_prefill()
    twin = fork_layer(grouped, Halves())
    step([twin], torch.Generator().manual_seed(9))
    for _ in range(8):
        outs = step([grouped, *alone], generator)
        for head in range(KV_HEADS):
            mine, own = (out[:, 2 * head : 2 * head + 2] for out in (outs[0], outs[1 + head]))
            torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-6)
    if forked:
        assert same(state(base), before)


def test_what_is_read_and_held_is_the_mean_over_heads(ops, generator):
    from questbench.experiments.counting import ReadCounter

    layer, counter = make(Halves(), ops), ReadCounter(HEADS, 0, [[[3, 4]], [[20]]])
    feed(layer, generator, n=37)
    q, k, v = entries(generator, 1)
    layer.append(k, v)

    class First:
        def step(self, watched, visits):
            counter.count(watched, visits, 0)

    attention.decode(layer, q[:, :, 0].contiguous(), SCORING, First())
    (found,) = counter.steps[0]
    assert found.read == found.visible == found.resident == (38 + 16 + 38 + 16) / 4
    assert found.needle_resident is False and found.needle_present is True and not found.everything
    assert found.needle_read is not None and found.needle_read[0] >= 0.5


def test_a_window_s_heads_really_let_go_of_their_pages(ops, generator):
    layer, whole = make(Halves(), ops), make(Dense(), ops)
    feed(layer, generator, n=37)
    feed(whole, generator, n=37)
    pages = 2 * (5 * 2 + 2 + 2)
    assert layer.bytes == (pages * PAGE * 2 * HEAD_DIM * 4, 0)
    assert whole.bytes[0] == 2 * 5 * 4 * PAGE * 2 * HEAD_DIM * 4


def test_rows_are_selected_in_every_group(ops, generator):
    layer = make(Halves(), ops)
    feed(layer, generator, LENGTHS)
    step([layer], generator)
    twin = fork_layer(layer, Halves())
    twin.select_rows(torch.tensor([1, 1]))
    q, k, v = entries(generator, 1)
    layer.append(k, v)
    twin.append(k[[1, 1]], v[[1, 1]])
    want = attention.decode(layer, q[:, :, 0].contiguous(), SCORING)
    got = attention.decode(twin, q[[1, 1], :, 0].contiguous(), SCORING)
    torch.testing.assert_close(got, want[[1, 1]], rtol=1e-5, atol=1e-6)


def test_a_prompt_in_parts_is_a_prompt_in_one_piece(ops):
    one, parts = make(Halves(), ops), make(Halves(), ops)
    generator = torch.Generator().manual_seed(3)
    q, k, v = entries(generator, 30)
    one.append(k, v)
    want = attention.prefill(one, q, k, v, SCORING)
    one.end_prefill()
    for start, stop in ((0, 11), (11, 30)):
        own = [x[:, :, start:stop] for x in (q, k, v)]
        parts.append(*own[1:])
        got = attention.prefill(parts, *own, SCORING, resumed=start > 0, more=stop < 30)
        torch.testing.assert_close(got, want[:, :, start:stop], rtol=1e-5, atol=1e-6)
    parts.end_prefill()
    for mine, other in zip(one.parts, parts.parts, strict=True):
        assert same(state(mine)[:4], state(other)[:4])


def test_groups_are_not_forked_for_another_method(ops):
    with pytest.raises(ValueError, match="groups of heads"):
        fork_layer(make(Halves(), ops), TOVA(16))


def test_observers_see_all_heads_at_once(ops, generator):
    layer, counter = make(Halves(), ops), Counter()
    feed(layer, generator, n=37)
    step([layer], generator, counter)
    assert counter.read[0][0].tolist() == [38, 16, 38, 16]
