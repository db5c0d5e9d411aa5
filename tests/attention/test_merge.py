"""A method that merges what it reads with a state of what it dropped, against dense attention in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from core_helpers import HEAD_DIM, HEADS, KV_HEADS, SCORING, Driver, same, state

from questbench import attention
from questbench.cache import make_layer
from questbench.methods._base import CacheShape, HeadGroup, Keep, State, TopPages
from questbench.methods.dense import Dense
from questbench.methods.h2o import H2O
from questbench.methods.streaming_llm import StreamingLLM
from questbench.methods.tova import TOVA


class Dropped(State):
    """Everything that was dropped, exactly: a state as large as what it stands for."""

    def __init__(self, layer):
        self.entries = [[[] for _ in range(layer.kv_heads)] for _ in range(layer.rows)]
        self.calls = []

    def dropping(self, layer, slots, k, v):
        self.calls.append(tuple(slots.shape))
        for row in range(layer.rows):
            for head in range(layer.kv_heads):
                for place, slot in enumerate(slots[row, head].tolist()):
                    if slot < 0:
                        assert not k[row, head, place].any() and not v[row, head, place].any()
                        continue
                    held_k, held_v = (x[row, head, place].clone() for x in (k, v))
                    text = int(layer.positions[row, head, slot])
                    assert slot < int(layer.lengths[row])
                    self.entries[row][head].append((text, held_k, held_v))

    def fork(self, layer):
        twin = Dropped(layer)
        twin.entries = [[list(head) for head in row] for row in self.entries]
        return twin

    def merged(self, q, out, lse, group):
        result = out.double()
        for row, heads in enumerate(self.entries):
            for head in range(q.shape[1]):
                if not (gone := heads[head // group]):
                    continue
                k, v = (torch.stack([entry[part] for entry in gone]).double() for part in (1, 2))
                logits = k @ q[row, head].double() * SCORING.scale
                own, kept = logits.logsumexp(0), lse[row, head].double()
                both = torch.logaddexp(own, kept)
                result[row, head] *= (kept - both).exp()
                result[row, head] += (own - both).exp() * (logits.softmax(0) @ v)
        return result.to(out.dtype)


class Merging:
    """The two hooks of a method that forgets nothing of what it drops."""

    def start(self, layer):
        return Dropped(layer)

    def merge(self, q, out, lse, layer):
        assert lse.shape == q.shape[:2] and lse.dtype == torch.float32
        return layer.state.merged(q, out, lse, q.shape[1] // layer.kv_heads)


@dataclass(frozen=True)
class MergingH2O(Merging, H2O):
    pass


@dataclass(frozen=True)
class MergingTOVA(Merging, TOVA):
    pass


@dataclass(frozen=True)
class MergingWindow(Merging, StreamingLLM):
    pass


@dataclass(frozen=True)
class MergingAtTheEnd(Merging, Dense):
    """Drops at the prompt's end alone."""

    def keep_prompt(self):
        return Keep(20, sinks=2, by="age")


METHODS = {
    "h2o": (MergingH2O(16), H2O(16)),
    "h2o-decode": (MergingH2O(16, score_from="decode"), H2O(16, score_from="decode")),
    "tova": (MergingTOVA(16), TOVA(16)),
    "streaming_llm": (MergingWindow(16, positions="text"), StreamingLLM(16, positions="text")),
}


@pytest.mark.parametrize("name", [*METHODS, "prompt"])
def test_what_was_dropped_comes_back(ops, name):
    method = MergingAtTheEnd() if name == "prompt" else METHODS[name][0]
    # The second row is full only after some steps, the first one from the prompt's end on.
    driver, dense = Driver(method, ops, 2), Driver(Dense(), ops, 2)
    for one in (driver, dense):
        one.prefill([37, 11])
    for _ in range(20):
        torch.testing.assert_close(driver.step(), dense.step(), atol=2e-5, rtol=2e-5)
    texts = driver.layer.state.entries
    for row in range(2):
        kept = driver.layer.places(row)
        for head in range(KV_HEADS):
            gone = [text for text, _, _ in texts[row][head]]
            assert sorted(gone + kept[head].tolist()) == list(range(driver.layer.seen[row]))


@pytest.mark.parametrize("name", METHODS)
def test_what_is_dropped_stays_the_same(ops, name):
    """The outputs of a layer do not decide what is dropped, and being told of it changes nothing."""
    one, other = (Driver(method, ops, 2) for method in METHODS[name])
    for driver in (one, other):
        driver.prefill([37, 11])
        for _ in range(20):
            driver.step()
    assert same(state(one.layer), state(other.layer))


def test_a_frozen_layer_tells_of_every_victim(ops):
    driver, dense = Driver(MergingH2O(16), ops, 2), Driver(Dense(), ops, 2)
    for one in (driver, dense):
        one.prefill([37, 11])
    driver.layer.freeze(12)
    for _ in range(12):
        torch.testing.assert_close(driver.step(), dense.step(), atol=2e-5, rtol=2e-5)
        driver.layer.advance()
    assert driver.layer.state.calls[-12:] == [(2, KV_HEADS, 1)] * 12


def test_groups_of_heads_merge_for_themselves(ops):
    @dataclass(frozen=True)
    class Half(Dense):
        def head_groups(self, shape):
            return HeadGroup((1,), MergingH2O(16)), HeadGroup((0,), Dense())

    shape = CacheShape(HEADS, KV_HEADS, HEAD_DIM, 8, 4)
    driver, dense = Driver(Dense(), ops, 1), Driver(Dense(), ops, 1)
    driver.layer = make_layer(Half(), ops, shape, rows=1)
    for one in (driver, dense):
        one.prefill([37])
    for _ in range(3):
        torch.testing.assert_close(driver.step(), dense.step(), atol=2e-5, rtol=2e-5)
    assert driver.layer.parts[0].held == [15]


@dataclass(frozen=True)
class Noting(Dense):
    """Takes the log-sum-exp for the output."""

    def select(self, q, layer, ops):
        return TopPages(2, 2)

    @property
    def needs_bounds(self):
        return "closed"

    def merge(self, q, out, lse, layer):
        return lse[..., None].expand_as(out) if layer.steps else out


def test_pages_with_the_best_bounds_have_a_log_sum_exp_too(ops):
    @dataclass(frozen=True)
    class Plain(Noting):
        merge = Dense.merge

    one, other = Driver(Noting(), ops, 2, bounds=True), Driver(Plain(), ops, 2, bounds=True)
    for driver in (one, other):
        driver.prefill([37, 30])
    torch.testing.assert_close(one.step(), other.step())
    q, k, v = one.entries(1)
    one.layer.append(k, v)
    query = q[:, :, 0].contiguous()
    lse = torch.empty(query.shape[:2])
    scores = ops.score(query, one.layer.paged, skip_newest=True)
    listed = ops.select(
        *(scores, one.layer.lengths, one.layer.page_size, 2),
        width=2,
        force_newest=True,
        merge="sum_softmax",
        group=HEADS // KV_HEADS,
        scale=SCORING.scale,
    )
    ops.attend(query, one.layer.paged, SCORING.scale, pages=listed[0], counts=listed[1], lse=lse)
    assert torch.equal(attention.decode(one.layer, query, SCORING)[..., 0], lse)


def test_a_list_with_room_for_every_page_is_still_chosen_by_score(ops):
    @dataclass(frozen=True)
    class Roomy(Noting):
        width: int = 5

        def select(self, q, layer, ops):
            return TopPages(2, self.width)

        def merge(self, q, out, lse, layer):
            return out

    outs = []
    for width in (2, 5):
        driver = Driver(Roomy(width=width), ops, 1, bounds=True)
        driver.prefill([37])
        assert driver.layer.paged.table.shape[1] == 5
        outs.append(driver.step())
    assert torch.equal(*outs)


def test_methods_without_the_hooks_pay_nothing(ops, monkeypatch):
    driver = Driver(H2O(16), ops, 1)
    driver.prefill([37])
    calls = []
    for op in ("attend", "evict"):
        plain = getattr(ops, op)

        def noted(*args, op=op, plain=plain, **kwargs):
            calls.append((op, kwargs.get("lse")))
            return plain(*args, **kwargs)

        monkeypatch.setattr(ops, op, noted)
    driver.step()
    assert calls == [("attend", None), ("evict", None)]
