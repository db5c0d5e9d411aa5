"""The fused step of the cpu equals its three ops bit for bit, and no result depends on the number of threads.

Elsewhere the step is these three ops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from kernel_cases import DTYPES, Store, generator, make_query, make_store
from kernel_checks import some_tokens
from torch import Tensor

from questbench import kernels
from questbench.kernels._ops import Merge, Ops
from questbench.kernels._paged import Paged


@pytest.fixture
def cpu() -> Ops:
    return kernels.load("cpu")


@pytest.mark.parametrize("merge", ["none", "max", "sum_softmax"])
@pytest.mark.parametrize("force_newest", [False, True])
@pytest.mark.parametrize(("group", "dim", "size"), [(1, 128, 16), (4, 64, 16), (7, 80, 4), (2, 96, 32), (8, 256, 8)])
def test_fused_equals_the_three_ops(
    cpu: Ops, merge: Merge, force_newest: bool, group: int, dim: int, size: int
) -> None:
    dtype = DTYPES[(group + force_newest) % 3]
    store = make_store([60 * size + 3, 0, 1, size, size + 1], heads=2, dim=dim, page_size=size, dtype=dtype)
    q = make_query(store, group)
    per_row = torch.tensor([9, 1, 2, 1, 1], dtype=torch.int32)
    for count in (1, 5, 100, per_row):
        for sinks, softcap in ((None, 0.0), (torch.randn(2 * group, generator=generator(1)), 5.0)):
            visits = torch.zeros((5, 2, 61 * size), dtype=torch.int32)
            want_visits = visits.clone()
            choice = {"count": count, "width": 100, "force_newest": force_newest, "merge": merge}
            last = {"softcap": softcap, "sinks": sinks}
            got = cpu.attend_top(q, store.paged, 0.125, **choice, **last, visits=visits)
            want = Ops.attend_top(cpu, q, store.paged, 0.125, **choice, **last, visits=want_visits)
            assert torch.equal(got, want)
            assert torch.equal(visits, want_visits)


def results(ops: Ops, store: Store, q: Tensor) -> list[Tensor]:
    """One pass over every op that reads a large cache."""
    scores = ops.score(q, store.paged, skip_newest=True)
    options = {"width": 90, "force_newest": True, "group": q.shape[1] // store.k_pages.shape[1]}
    pages, counts = ops.select(scores, store.lengths, store.page_size, 90, merge="sum_softmax", **options)
    mass = torch.zeros((q.shape[0], store.k_pages.shape[1], int(store.lengths.max())))
    visits = mass.to(torch.int32)
    record = {"mass": mass, "mass_mode": "sum", "visits": visits}
    dense = ops.attend(q, store.paged, 0.125, **record)
    listed = ops.attend(q, store.paged, 0.125, pages=pages, counts=counts, **record)
    tokens, held = some_tokens(store, store.k_pages.shape[1], 1500)
    named = ops.attend(q, store.paged, 0.125, tokens=tokens, counts=held, **record)
    return [scores, pages, counts, dense, listed, named, mass, visits]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_change_nothing(cpu: Ops, dtype: torch.dtype) -> None:
    store = make_store([3000, 17, 2100], heads=2, dim=64, page_size=16, dtype=dtype)
    q = make_query(store, 4)

    def top() -> Tensor:
        choice = {"count": 80, "width": 80, "force_newest": True, "merge": "sum_softmax"}
        return cpu.attend_top(q, store.paged, 0.125, **choice)

    check_threads(lambda: [*results(cpu, store, q), top()])


def test_the_fused_step_over_bounds_by_channel_equals_the_three_ops(cpu: Ops) -> None:
    store = make_store([75 * 8 + 3, 0, 8, 9], heads=4, dim=64, page_size=8, dtype=torch.bfloat16, by_channel=True)
    q = make_query(store, 1)
    choice = {"count": 9, "width": 9, "force_newest": True, "merge": "sum_softmax"}
    got, want = (step(q, store.paged, 0.125, **choice) for step in (cpu.attend_top, partial(Ops.attend_top, cpu)))
    assert torch.equal(got, want)


def test_threads_change_nothing_in_append(cpu: Ops) -> None:
    entries = torch.randn((2, 3, 4, 700, 64), generator=generator(1)).bfloat16()

    def run() -> list[Tensor]:
        store = make_store([5, 0, 20], heads=4, dim=64, page_size=16, dtype=torch.bfloat16)
        pool = store.k_pages.new_zeros((150, 4, 16, 64))
        table = torch.arange(150, dtype=torch.int32).view(3, 50)
        bounds, lengths = pool.new_zeros((150, 4, 2, 64)), torch.tensor([5, 0, 20], dtype=torch.int32)
        v_pages = pool.clone()
        cpu.append(entries[0], entries[1], Paged(pool, v_pages, table, lengths, bounds))
        return [pool, v_pages, bounds, lengths]

    check_threads(run)


def check_threads(run: Callable[[], list[Tensor]]) -> None:
    torch.set_num_threads(1)
    alone = run()
    for _ in range(3):
        torch.set_num_threads(2)
        for a, b in zip(alone, run(), strict=True):
            assert torch.equal(a, b)
