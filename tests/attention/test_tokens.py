"""A method that reads lists of tokens: the forward path carries them out, and the observer counts them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from core_helpers import HEAD_DIM, HEADS, KV_HEADS, SCORING

from questbench import attention
from questbench.cache import LayerCache
from questbench.methods._base import Selection, Tokens
from questbench.methods.dense import Dense


@dataclass(frozen=True)
class EverySecond(Dense):
    """The newest entry and every second one before it."""

    def select(self, q, layer, ops) -> Selection:
        held = max(layer.held)
        tokens = torch.arange((held - 1) % 2, held, 2, dtype=torch.int32)
        lists = tokens.expand(layer.rows, layer.kv_heads, -1).contiguous()
        return Tokens(lists, torch.full(lists.shape[:2], len(tokens), dtype=torch.int32))


class Seen:
    def step(self, layer, visits):
        self.visits = visits.clone()


def test_what_a_method_lists_is_what_is_read(ops):
    layer = LayerCache(EverySecond(), ops, rows=2, kv_heads=KV_HEADS, head_dim=HEAD_DIM, page_size=8)
    k, v = torch.randn((2, 2, KV_HEADS, 31, HEAD_DIM), generator=torch.Generator().manual_seed(0))
    layer.append(k, v)
    q = torch.randn((2, HEADS, HEAD_DIM), generator=torch.Generator().manual_seed(1))
    seen = Seen()
    got = attention.decode(layer, q, SCORING, observer=seen)
    kept = LayerCache(Dense(), ops, rows=2, kv_heads=KV_HEADS, head_dim=HEAD_DIM, page_size=8)
    kept.append(k[:, :, ::2], v[:, :, ::2])
    torch.testing.assert_close(got, attention.decode(kept, q, SCORING), rtol=1e-4, atol=1e-5)
    assert (seen.visits[:, :, 0:31:2] == HEADS // KV_HEADS).all() and (seen.visits[:, :, 1::2] == 0).all()
