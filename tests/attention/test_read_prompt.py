"""A method that reads prompts for itself, block-sparsely, against plain float64 attention."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from core_helpers import HEAD_DIM, HEADS, KV_HEADS, PAGE, SCORING, Driver, same, state

from questbench import attention
from questbench.attention import Scoring
from questbench.cache import fork_layer, make_layer
from questbench.methods._base import CacheShape, HeadGroup
from questbench.methods._prompt import PromptOf
from questbench.methods.dense import Dense
from questbench.methods.h2o import H2O
from questbench.methods.streaming_llm import StreamingLLM

BLOCK = 8


def seen(m, n, blocks):
    """``[m, n]``: the own block of each of the newest m queries, the first one, and ``blocks - 2`` before its own."""
    query, key = torch.arange(n - m, n)[:, None] // BLOCK, torch.arange(n)[None] // BLOCK
    causal = torch.arange(n)[None] <= torch.arange(n - m, n)[:, None]
    return causal & ((key == 0) | (key > query - blocks + 1))


def by_hand(q, k, v, blocks, scale):
    """``[Hq, m, D]`` in float64, one head at a time."""
    group, out = q.shape[0] // k.shape[0], torch.zeros_like(q, dtype=torch.float64)
    for head in range(q.shape[0]):
        logits = q[head].double() @ k[head // group].double().T * scale
        logits = logits.masked_fill(~seen(q.shape[1], k.shape[1], blocks), -torch.inf)
        out[head] = logits.softmax(1) @ v[head // group].double()
    return out


class Blocks:
    def read_prompt(self, q, k, v, layer, scoring):
        assert scoring.scale == SCORING.scale and layer.method in (self, PromptOf(reader=self))
        mask = seen(q.shape[1], k.shape[1], self.budget // BLOCK)
        return torch.nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, scale=scoring.scale, enable_gqa=True
        )[0]


@dataclass(frozen=True)
class Sparse(Blocks, Dense):
    """Dense behind a prompt of few blocks."""


@dataclass(frozen=True)
class SparseH2O(Blocks, H2O):
    pass


def test_the_hook_says_who_can_share_a_prefill():
    assert Dense().prefill_key is None and H2O(16).prefill_key is None
    assert Sparse(24).prefill_key == Sparse(24).prefill_key != Sparse(32).prefill_key
    assert Sparse(24).prefill_key is not None


@pytest.mark.parametrize("scoring", [SCORING, Scoring(SCORING.scale, softcap=30.0)])
def test_a_prompt_is_read_as_the_method_says(ops, scoring):
    driver = Driver(Sparse(24), ops, 2, scoring=scoring)
    lengths = [37, 26]
    q, k, v = driver.entries(37)
    driver.layer.append(k, v, lengths)
    out = attention.prefill(driver.layer, q, k, v, scoring, lengths)
    for row, held in enumerate(lengths):
        expected = by_hand(q[row, :, -held:], k[row, :, -held:], v[row, :, -held:], 3, SCORING.scale)
        torch.testing.assert_close(out[row, :, -held:].double(), expected, atol=1e-5, rtol=1e-5)
        assert not out[row, :, :-held].any()


def test_in_parts_as_in_one_piece(ops):
    whole, parts = Driver(Sparse(24), ops, 1), Driver(Sparse(24), ops, 1)
    q, k, v = whole.entries(40)
    whole.layer.append(k, v)
    expected = attention.prefill(whole.layer, q, k, v, SCORING)
    out = []
    for start, stop in ((0, 16), (16, 39), (39, 40)):
        part = [x[:, :, start:stop] for x in (q, k, v)]
        parts.layer.append(*part[1:])
        out.append(attention.prefill(parts.layer, *part, SCORING, resumed=start > 0, more=stop < 40))
    torch.testing.assert_close(torch.cat(out, dim=2), expected)


def test_its_mass_is_that_of_dense_attention(ops):
    one, other = Driver(SparseH2O(16), ops, 2), Driver(H2O(16), ops, 2)
    outs = [driver.prefill([37, 30]) for driver in (one, other)]
    assert not torch.equal(*outs) and same(state(one.layer), state(other.layer))


def test_a_base_for_its_forks_reads_as_it_does(ops):
    method = SparseH2O(16)
    base, own = Driver(PromptOf(reader=Sparse(24)), ops, 2), Driver(Sparse(24), ops, 2)
    assert torch.equal(base.prefill([37, 30]), own.prefill([37, 30]))
    assert PromptOf(reader=method).keeps_all


@dataclass(frozen=True)
class Grouped(Dense):
    """One KV head is read sparsely, the other one keeps a window."""

    def head_groups(self, shape):
        return HeadGroup((1,), Sparse(24)), HeadGroup((0,), StreamingLLM(16, positions="text"))

    @property
    def prefill_key(self):
        return "grouped"

    @property
    def keeps_all(self):
        return False


def test_a_base_is_stored_in_the_groups_of_its_reader(ops):
    shape = CacheShape(HEADS, KV_HEADS, HEAD_DIM, PAGE, 4)
    base, own = (make_layer(method, ops, shape, rows=1) for method in (PromptOf(reader=Grouped()), Grouped()))
    drivers = [Driver(Dense(), ops, 1) for _ in range(2)]
    outs = []
    for driver, layer in zip(drivers, (base, own), strict=True):
        driver.layer = layer
        outs.append(driver.prefill([37]))
    assert torch.equal(*outs) and [part.held for part in base.parts] == [[37], [37]]
    drivers[0].layer = twin = fork_layer(base, Grouped())
    twin.end_prefill()
    assert [part.held for part in twin.parts] == [part.held for part in own.parts] == [[37], [15]]
    for _ in range(3):
        torch.testing.assert_close(*(driver.step() for driver in drivers))
