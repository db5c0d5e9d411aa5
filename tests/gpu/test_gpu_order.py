"""Kernels one right behind the other: they may start before the one ahead has ended, and must not show it."""

from __future__ import annotations

import pytest
import torch
from gpu_bodies import DEVICE, REHEARSED
from kernel_cases import generator, make_query, make_store

from questbench.kernels._ops import Ops
from questbench.kernels._paged import Paged

pytestmark = pytest.mark.gpu

STEPS, ROOM = (4, 64) if REHEARSED else (40, 64)
LENGTHS = [3000, 17, 640] if not REHEARSED else [300, 17, 64]
SIZE = 16


def decoded(ops: Ops, group: int, dim: int, *, pausing: bool) -> list[torch.Tensor]:
    """What every step gave and what is left in the cache; ``pausing`` lets the device come to rest after every op."""
    store = make_store(LENGTHS, heads=2, dim=dim, page_size=SIZE, dtype=torch.bfloat16)
    for stored in (store.k_pages, store.v_pages, store.bounds):
        stored.nan_to_num_(0.0)
    rows, pages = len(LENGTHS), -(-(max(LENGTHS) + ROOM) // SIZE)
    table = torch.arange(rows * pages, dtype=torch.int32).view(rows, pages)
    k, v, bounds = (
        torch.zeros((rows * pages, *x.shape[1:]), dtype=x.dtype) for x in (store.k_pages, store.v_pages, store.bounds)
    )
    for row, length in enumerate(LENGTHS):
        used, there = store.page_table[row, : -(-length // SIZE)].long(), table[row, : -(-length // SIZE)].long()
        k[there], v[there], bounds[there] = store.k_pages[used], store.v_pages[used], store.bounds[used]
    k, v, bounds, table, lengths = (x.to(DEVICE) for x in (k, v, bounds, table, store.lengths))
    paged = Paged(k, v, table, lengths, bounds)
    positions = torch.arange(pages * SIZE, dtype=torch.int32, device=DEVICE).expand(rows, 2, -1).contiguous()
    mass = torch.zeros((rows, 2, pages * SIZE), device=DEVICE)
    entries = torch.randn((STEPS, 2, rows, 2, 1, dim), generator=generator(3)).bfloat16().to(DEVICE)
    queries = torch.stack([make_query(store, group, seed=step) for step in range(STEPS)]).to(DEVICE)
    choice = {"width": 9, "force_newest": True, "merge": "sum_softmax", "group": group, "scale": dim**-0.5}
    rule = {"capacity": LENGTHS[1] + 4, "sinks": 2, "recent": 3, "shared": False}

    def rest() -> None:
        if pausing and not REHEARSED:
            torch.cuda.synchronize()

    out: list[torch.Tensor] = []
    for step in range(STEPS):
        q = queries[step]
        ops.append(*entries[step], paged)
        rest()
        scores = ops.score(q, paged, skip_newest=True)
        rest()
        chosen, counts = ops.select(scores, lengths, SIZE, 9, **choice)
        rest()
        read = ops.attend(q, paged, dim**-0.5, pages=chosen, counts=counts)
        rest()
        seen = ops.attend(q, paged, dim**-0.5, mass=mass, mass_mode="sum")
        rest()
        ops.evict(paged, positions, mass, **rule)
        rest()
        out += [scores, chosen, counts, read, seen, lengths.clone(), mass.clone()]
    return [*out, k, v, bounds, positions]


@pytest.mark.parametrize(("group", "dim"), [(1, 128), (4, 128), (8, 64), (2, 256)])
def test_a_busy_device_gives_what_a_resting_one_gives(there: Ops, group: int, dim: int) -> None:
    calm = decoded(there, group, dim, pausing=True)
    for _ in range(1 if REHEARSED else 3):
        busy = decoded(there, group, dim, pausing=False)
        assert all(torch.equal(a, b) for a, b in zip(calm, busy, strict=True))
    assert all(x.isfinite().all() for x in calm if x.dtype == torch.bfloat16)
