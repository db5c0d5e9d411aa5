"""A million tokens in eight KV heads, in a pool beyond 2^31 elements: every offset must be counted in 64 bits.

Keys are zero but for needles, so that the answer is known without attending to a million entries twice.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gpu_bodies import DEVICE, REHEARSED, backend
from torch import Tensor

from questbench.kernels._ops import Ops
from questbench.kernels._paged import Paged

pytestmark = pytest.mark.gpu

HEADS, SIZE, DIM, GROUP = 8, 16, 128, 4
TOKENS = 4096 if REHEARSED else 1 << 20
POOL = 2 * TOKENS // SIZE if REHEARSED else 3 * (1 << 16)
"""Physical pages: 3.2 * 10^9 elements of keys, and as many of values; the text's pages lie all over them."""
LOGIT = 40.0


@pytest.fixture(scope="module")
def pool() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    ops_or_skip = backend()
    need = 2 * POOL * HEADS * SIZE * DIM * 2
    if not REHEARSED and torch.cuda.mem_get_info()[0] < 1.2 * need:
        pytest.skip(f"needs {1.2 * need / 2**30:.0f} GiB of free memory on the device")
    assert ops_or_skip.name == DEVICE and (REHEARSED or POOL * HEADS * SIZE * DIM > 1 << 31)
    k = torch.zeros((POOL, HEADS, SIZE, DIM), dtype=torch.bfloat16, device=DEVICE)
    v = torch.zeros_like(k)
    bounds = torch.zeros((POOL, HEADS, 2, DIM), dtype=torch.bfloat16, device=DEVICE)
    order = torch.randperm(POOL, generator=torch.Generator().manual_seed(0))[: TOKENS // SIZE]
    order[0], order[-1] = POOL - 1, POOL - 2  # the far end of the pool, for the first page and the newest
    table = order.to(torch.int32)[None].to(DEVICE)
    assert len(set(table[0].tolist())) == TOKENS // SIZE or not REHEARSED
    yield k, v, bounds, table
    if not REHEARSED:
        torch.cuda.empty_cache()


def query() -> Tensor:
    q = torch.zeros((1, HEADS * GROUP, DIM), dtype=torch.bfloat16, device=DEVICE)
    q[:, :, 0] = 1.0
    return q


@pytest.mark.parametrize("place", [0, TOKENS // 2 + 3, TOKENS - 1])
def test_a_needle_is_scored_selected_and_read_wherever_it_lies(there: Ops, pool: tuple, place: int) -> None:
    k, v, bounds, table = pool
    lengths = torch.tensor([TOKENS], dtype=torch.int32, device=DEVICE)
    page = int(table[0, place // SIZE])
    k[page, :, place % SIZE, 0], v[page, :, place % SIZE] = LOGIT, 1.0
    bounds[page, :, 0, 0] = LOGIT
    try:
        q = query()
        paged = Paged(k, v, table, lengths, bounds)
        out = there.attend(q, paged, 1.0)
        torch.testing.assert_close(out, torch.ones_like(out), rtol=1e-2, atol=1e-2)
        scores = there.score(q, paged, skip_newest=True)
        scored = torch.zeros(TOKENS // SIZE, device=DEVICE)
        scored[place // SIZE] = LOGIT
        scored[-1] = -torch.inf
        assert torch.equal(scores[0], scored.expand(HEADS * GROUP, -1))
        options = {"width": 4, "force_newest": True, "merge": "max", "group": GROUP}
        pages, counts = there.select(scores, lengths, SIZE, 4, **options)
        others = [page for page in range(4) if page != place // SIZE]
        best = [] if place // SIZE == TOKENS // SIZE - 1 else [place // SIZE]
        want = sorted([*best, *others[: 3 - len(best)], TOKENS // SIZE - 1])
        assert pages[0].tolist() == [want] * HEADS and counts.tolist() == [[4] * HEADS]
        choice = {"count": 4, "width": 4, "force_newest": True, "merge": "max"}
        top = there.attend_top(q, paged, 1.0, **choice)
        torch.testing.assert_close(top, torch.ones_like(top), rtol=1e-2, atol=1e-2)
    finally:
        k[page], v[page], bounds[page] = 0.0, 0.0, 0.0


def test_the_last_entry_is_appended_and_the_first_is_evicted(there: Ops, pool: tuple) -> None:
    k, v, bounds, table = pool
    lengths = torch.tensor([TOKENS - 1], dtype=torch.int32, device=DEVICE)
    entry = torch.full((1, HEADS, 1, DIM), 2.0, dtype=torch.bfloat16, device=DEVICE)
    first, last = int(table[0, 0]), int(table[0, -1])
    paged = Paged(k, v, table, lengths, bounds)
    there.append(entry, -entry, paged)
    assert lengths.tolist() == [TOKENS]
    assert (k[last, :, -1] == 2.0).all() and (v[last, :, -1] == -2.0).all() and (k[last, :, :-1] == 0).all()
    assert (bounds[last, :, 0] == 2.0).all() and (bounds[last, :, 1] == 0.0).all()
    positions = torch.arange(TOKENS, dtype=torch.int32, device=DEVICE).expand(1, HEADS, -1).contiguous()
    rule = {"capacity": TOKENS - 1, "sinks": 0, "recent": 5, "shared": False}
    there.evict(paged, positions, None, **rule)
    assert lengths.tolist() == [TOKENS - 1] and (positions[0, :, 0] == TOKENS - 1).all()
    assert (k[first, :, 0] == 2.0).all() and (v[first, :, 0] == -2.0).all() and (k[first, :, 1:] == 0).all()
    for page in (first, last):
        k[page], v[page], bounds[page] = 0.0, 0.0, 0.0
