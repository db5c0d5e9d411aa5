"""Weights that are moved to huge pages: the same numbers, ties kept, small ones side by side."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from questbench._memory import BLOCK, HUGE, LINE, move_to_huge_pages


class Model(nn.Module):
    """Small, large, empty, scalar, strided and tied weights of several types."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(300, 7 + index, bias=index % 2 == 0) for index in range(5))
        self.narrow = nn.Linear(33, 5).to(torch.bfloat16)
        self.large = nn.Linear(1024, 2 * HUGE // 4096)
        self.scalar, self.none = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.empty(0, 4))
        self.strided = nn.Parameter(torch.randn(6, 4).t())
        self.tied = self.layers[1].weight


def storage(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


def test_weights_keep_their_values_and_ties() -> None:
    torch.manual_seed(0)
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    strided, large = storage(model.strided), storage(model.large.weight)
    move_to_huge_pages(model)
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name]), name
    assert model.tied is model.layers[1].weight
    assert storage(model.strided) == strided, "what is not contiguous stays"
    assert storage(model.large.weight) not in (large, storage(model.large.bias)), "a large one has its own"
    small = [*model.layers.parameters(), *model.narrow.parameters(), model.large.bias, model.scalar]
    assert len({storage(parameter) for parameter in small}) == 1
    assert all(parameter.data_ptr() % LINE == 0 for parameter in small)
    places = sorted((parameter.data_ptr(), parameter.nbytes) for parameter in small)
    assert all(at + size <= after for (at, size), (after, _) in itertools.pairwise(places)), "none overlap"


def test_blocks_are_bounded() -> None:
    each = HUGE // 4
    model = nn.ParameterList(nn.Parameter(torch.zeros(each)) for _ in range(2 * BLOCK // (4 * each) + 1))
    move_to_huge_pages(model)
    sizes = {storage(parameter): parameter.untyped_storage().nbytes() for parameter in model}
    assert len(sizes) == 3 and max(sizes.values()) <= BLOCK + 2 * HUGE
