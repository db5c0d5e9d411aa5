"""The plain algorithms inside the CUDA kernels, on the host: keys, shares of splits, merging, 64-bit places."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import building
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from questbench.kernels import _build

SOURCE = Path(__file__).resolve().parent / "algorithms.cu"
STEADY = settings(deadline=None, derandomize=True, database=None)
_loaded: list[Any] = []


def algorithms() -> Any:
    if not _loaded:
        _loaded.append(_build.loaded(building.build_emulator([SOURCE])))
    return _loaded[0]


def keys(scores: Tensor) -> Tensor:
    out = torch.empty(scores.shape, dtype=torch.int64)
    algorithms().keys(scores, out)
    return out


@STEADY
@given(st.lists(st.floats(width=32), min_size=2, max_size=30))
def test_keys_order_like_scores_with_nan_first(values: list[float]) -> None:
    scores = torch.tensor(values, dtype=torch.float32)
    got = keys(scores)
    for i, a in enumerate(scores.tolist()):
        for j, b in enumerate(scores.tolist()):
            if math.isnan(a):
                assert got[i] >= got[j] and (got[i] == got[j]) == math.isnan(b)
            elif not math.isnan(b):
                assert (got[i] < got[j]) == (a < b) and (got[i] == got[j]) == (a == b)


def test_keys_of_the_edges() -> None:
    edges = [-math.inf, -3.4e38, -1e-45, 0.0, 1e-45, 3.4e38, math.inf, math.nan]
    got = keys(torch.tensor(edges, dtype=torch.float32))
    assert (got[1:] > got[:-1]).all() and got[-1] == 2**32 - 1
    assert keys(torch.tensor([-0.0])).item() == keys(torch.tensor([0.0])).item()


@STEADY
@given(st.integers(0, 1 << 26), st.integers(1, 500))
def test_shares_are_whole_disjoint_and_even(tiles: int, splits: int) -> None:
    cuts = [algorithms().begin(tiles, split, splits) for split in range(splits + 1)]
    sizes = [b - a for a, b in itertools.pairwise(cuts)]
    assert cuts[0] == 0 and cuts[-1] == tiles
    assert min(sizes) >= 0 and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("page", "kv_heads", "head", "size"), [(2**27, 8, 7, 16), (2**24 + 3, 32, 31, 64), (0, 1, 0, 8), (2**30, 8, 0, 16)]
)
def test_places_beyond_two_to_the_33(page: int, kv_heads: int, head: int, size: int) -> None:
    got = algorithms().entry(page, kv_heads, head, size.bit_length() - 1)
    assert got == (page * kv_heads + head) * size
    assert page < 2**24 or got >= 2**33


def merged(parts: Tensor, sink: float) -> Tensor:
    out = torch.empty(3)
    algorithms().merge(parts, sink, out)
    return out


@STEADY
@given(
    st.lists(st.lists(st.floats(-40, 40, width=32), max_size=5), max_size=6),
    st.one_of(st.just(-math.inf), st.floats(-20, 20, width=32)),
)
def test_parts_merge_to_the_softmax_of_all(logits: list[list[float]], sink: float) -> None:
    """Each list of logits is a part; the value of the i-th entry of all is i + 1."""
    rows, entry = [], 0
    for part in logits:
        tops = torch.tensor(part, dtype=torch.float64)
        values = torch.arange(entry + 1, entry + 1 + len(part), dtype=torch.float64)
        entry += len(part)
        top = tops.max() if part else torch.tensor(-math.inf)
        weights = torch.exp2(tops - top)
        # What stands in an empty part was never written.
        rows.append([top, weights.sum(), (weights * values).sum() if part else math.nan])
    every = torch.tensor([x for part in logits for x in part] + [sink], dtype=torch.float64)
    got = merged(torch.tensor(rows).reshape(-1, 3).float(), sink)
    if entry == 0 and sink == -math.inf:
        assert got.tolist() == [-math.inf, 0.0, 0.0]
        return
    weights = torch.exp2(every - every.max())
    values = torch.cat([torch.arange(1, entry + 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    assert got[0] == every.max().float()
    torch.testing.assert_close(got[1].double(), weights.sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(got[2].double(), (weights * values).sum(), rtol=1e-5, atol=1e-12)


def test_entries_of_minus_infinity_weigh_nothing_and_nan_shows() -> None:
    nothing = merged(torch.tensor([[-math.inf, 0.0, math.nan], [2.0, 1.5, 3.0]]), -math.inf)
    assert nothing.tolist() == [2.0, 1.5, 3.0]
    assert merged(torch.tensor([[-math.inf, math.nan, math.nan], [2.0, 1.5, 3.0]]), -math.inf)[1:].isnan().all()


def test_a_part_without_entries_is_told_from_one_that_weighs_nothing() -> None:
    assert algorithms().weight(-math.inf, 0.0, 3.0) == -1.0
    assert algorithms().weight(-math.inf, math.nan, 3.0) == 0.0  # its sum is NaN and must show
    assert algorithms().weight(3.0, 0.0, 3.0) == 1.0
    assert algorithms().weight(1.0, 2.0, 3.0) == 0.25
