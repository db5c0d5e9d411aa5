"""FlashInfer as a second opinion: it and our kernels agree, dense and over lists, and so do all of its dense paths."""

from __future__ import annotations

import pytest
import torch
from gpu_bodies import DEVICE, backend, flashinfer
from kernel_cases import Store, make_query, make_store, random_lists
from torch import Tensor

from questbench.kernels._ops import Ops

pytestmark = pytest.mark.gpu

LENGTHS = [2000, 1, 17, 640]


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Ops:
    return flashinfer(monkeypatch)


def on_device(store: Store) -> Store:
    table = store.page_table.clamp(max=store.k_pages.shape[0] - 1)
    moved = (x.to(DEVICE) for x in (store.k_pages, store.v_pages, store.bounds, table, store.lengths))
    return Store(*moved)


def agree(got: Tensor, want: Tensor) -> None:
    """Both are right within a few roundings of storage; FlashInfer also rounds probabilities to it."""
    tolerance = 4 * 2.0 ** (-8 if want.dtype == torch.bfloat16 else -11)
    torch.testing.assert_close(got.float(), want.float(), rtol=tolerance, atol=tolerance * float(want.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("group", "dim", "size"), [(1, 128, 16), (4, 128, 16), (8, 64, 32), (4, 256, 8)])
def test_dense_and_lists(other: Ops, dtype: torch.dtype, group: int, dim: int, size: int) -> None:
    ours = backend()
    store = make_store(LENGTHS, heads=2, dim=dim, page_size=size, dtype=dtype)
    q, there = make_query(store, group).to(DEVICE), on_device(store)
    agree(ours.attend(q, there.paged, dim**-0.5), other.attend(q, there.paged, dim**-0.5))
    for heads in (2, 2 * group):
        pages, counts = (x.to(DEVICE) for x in random_lists(store, heads, 20))
        lists = {"pages": pages, "counts": counts}
        agree(ours.attend(q, there.paged, dim**-0.5, **lists), other.attend(q, there.paged, dim**-0.5, **lists))


def test_lists_that_select_made(other: Ops) -> None:
    ours = backend()
    store = make_store(LENGTHS, heads=2, dim=128, page_size=16, dtype=torch.bfloat16)
    q, there = make_query(store, 4).to(DEVICE), on_device(store)
    scores = ours.score(q, there.paged, skip_newest=True)
    options = {"width": 30, "force_newest": True, "merge": "sum_softmax", "group": 4, "scale": 0.09}
    pages, counts = ours.select(scores, there.lengths, 16, 30, **options)
    want = other.attend(q, there.paged, 0.09, pages=pages, counts=counts)
    agree(ours.attend(q, there.paged, 0.09, pages=pages, counts=counts), want)
    choice = {"count": 30, "width": 30, "force_newest": True, "merge": "sum_softmax"}
    agree(ours.attend_top(q, there.paged, 0.09, **choice), want)


@pytest.mark.parametrize("group", [1, 4])
def test_every_dense_path_of_flashinfer(other: Ops, group: int) -> None:
    ours = backend()
    store = make_store(LENGTHS, heads=8, dim=128, page_size=16, dtype=torch.bfloat16)
    q, there = make_query(store, group).to(DEVICE), on_device(store)
    paths, reasons = other.dense_paths(q, there.paged, 0.09)
    assert paths, reasons
    want = ours.attend(q, there.paged, 0.09)
    for path in paths.values():
        out = torch.full_like(q, torch.nan)
        path(q, there.k_pages, there.v_pages, out)
        agree(out, want)
