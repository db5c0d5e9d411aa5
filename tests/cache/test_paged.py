"""What the ops are given of a layer: one value that lasts from step to step, and is a new one when storage moves."""

from __future__ import annotations

import torch

from questbench import kernels
from questbench.cache import LayerCache
from questbench.methods.dense import Dense


def entries(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones((1, 2, count, 16)), torch.ones((1, 2, count, 16))


def test_it_lasts_while_nothing_moves() -> None:
    layer = LayerCache(Dense(), kernels.load("reference"), rows=1, kv_heads=2, head_dim=16, page_size=8, capacity=8)
    layer.append(*entries(3))
    first = layer.paged
    layer.append(*entries(2))
    assert layer.paged is first and layer.slots == first.slots == 8
    layer.append(*entries(9))
    assert layer.paged is not first and layer.paged.slots == 16
    assert layer.paged.k is layer.pool.k and layer.paged.lengths.tolist() == [14]


def test_a_fork_that_makes_the_common_pool_grow_is_noticed() -> None:
    layer = LayerCache(Dense(), kernels.load("reference"), rows=1, kv_heads=2, head_dim=16, page_size=8)
    layer.append(*entries(3))
    before = layer.paged
    twin = layer.fork(Dense())
    twin.append(*entries(100))
    assert layer.paged.k is not before.k and layer.paged.k is twin.paged.k
    layer.select_rows(torch.tensor([0, 0]))
    assert layer.paged.lengths.tolist() == [3, 3] and layer.paged.table.shape == (2, 1)
