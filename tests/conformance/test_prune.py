"""quantize, estimate and prune: four-bit keys, logits from them, and the fewest entries with a share of the mass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import DTYPES, REFERENCE, generator, make_query, make_store, random_lists
from prune_checks import check_estimate, check_prune, check_quantize, check_smallest, coded

from questbench import kernels
from questbench.kernels._codes import widened_codes
from questbench.kernels.reference import smallest_set

DIMS = (64, 128, 256, 40, 80, 16)
SIZES, GROUPS = (4, 8, 16, 32), (1, 4, 2, 8, 3, 12)
SHARES = {0.0: [0], 0.33: [0], 0.34: [0, 3], 0.7: [0, 2, 3], 0.99: [0, 1, 2, 3], 1.0: [0, 1, 2, 3]}
LOGITS = st.sampled_from([torch.nan, torch.inf, -torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0, 2.5, 40.0, -40.0])


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_storage_type_and_head_size(ops: Any, dtype: torch.dtype, dim: int) -> None:
    at = DIMS.index(dim)
    size, group = SIZES[at % 4], GROUPS[at]
    store = make_store([5 * size + 3, 0, 1, size, 2 * size - 1], heads=2, dim=dim, page_size=size, dtype=dtype, seed=at)
    check_quantize(ops, store)
    q = make_query(store, group)
    for heads in {2, 2 * group}:
        lists = random_lists(store, heads, 4)
        logits = check_estimate(ops, store, q, lists, softcap=5.0 if at % 2 else 0.0)
        for p in (0.85, 0.3):
            check_prune(ops, store, 4 * logits, lists, p)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_are_near_their_keys_and_odd_entries_show(ops: Any, dtype: torch.dtype) -> None:
    store = make_store([40], heads=2, dim=64, page_size=8, dtype=dtype)
    first = int(store.page_table[0, 0])
    store.k_pages[first, 0, 0, 5] = torch.nan
    store.k_pages[first, 0, 1, 5] = -torch.inf
    store.k_pages[first, 0, 2] = 1.25
    store.k_pages[first, 0, 3] = torch.finfo(dtype).tiny * torch.arange(64).remainder(3).to(dtype)
    codes, ranges = check_quantize(ops, store)
    keys = store.entries(store.k_pages, 0).float()
    near = ranges[0, :, :40, 1:] + ranges[0, :, :40, :1] * widened_codes(codes[0, :, :40], 64)
    odd = ranges[0, :, :40].isnan().any(-1)
    assert odd.nonzero().tolist() == [[0, 0], [0, 1]]
    assert ((near - keys).abs() <= ranges[0, :, :40, :1] * 0.5001 + 1e-6)[~odd].all()
    q = make_query(store, 2)
    lists = torch.arange(5, dtype=torch.int32).expand(1, 2, 5).contiguous(), torch.full((1, 2), 5, dtype=torch.int32)
    logits = check_estimate(ops, store, q, lists)
    tokens, counts = ops.prune(logits, store.lengths, 8, *lists, 0.1)
    assert tokens[0, 0, :2].tolist() == [0, 1] and 2 < counts[0, 0] < 40
    check_prune(ops, store, logits, lists, 0.1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    columns=st.integers(1, 21).flatmap(
        lambda n: st.lists(st.lists(LOGITS, min_size=n, max_size=n), min_size=2, max_size=2)
    ),
    p=st.sampled_from([0.0, 0.4, 0.5, 0.95, 1.0]),
    shared=st.booleans(),
)
def test_ties_infinities_and_nan(backend: Any, columns: list[list[float]], p: float, shared: bool) -> None:
    ops = backend.load()
    length = len(columns[0])
    store = make_store([length], heads=1, dim=64, page_size=4, dtype=backend.dtypes[0])
    pages = -(-length // 4)
    listed = torch.arange(pages, dtype=torch.int32).expand(1, 1 if shared else 2, pages).contiguous()
    logits = torch.full((1, 2, pages * 4), -torch.inf)
    logits[0, :, :length] = torch.tensor(columns)
    counts = torch.full(listed.shape[:2], pages, dtype=torch.int32)
    check_prune(ops, store, logits, (listed, counts), p)


def test_empty_lists_and_rows_and_the_only_entry(ops: Any, backend: Any) -> None:
    store = make_store([20, 0, 1], heads=1, dim=64, page_size=4, dtype=backend.dtypes[0])
    pages = torch.tensor([[[1, 4]], [[-1, -1]], [[0, -1]]], dtype=torch.int32)
    counts = torch.tensor([[0], [0], [1]], dtype=torch.int32)
    q = make_query(store, 1)
    logits = check_estimate(ops, store, q, (pages, counts))
    assert (logits[:2] == -torch.inf).all()
    tokens, taken = ops.prune(logits, store.lengths, 4, pages, counts, 0.9)
    assert taken[:, 0].tolist() == [0, 0, 1] and tokens[2, 0].tolist() == [0] + 7 * [-1]


def test_long_lists_need_room_of_their_own(ops: Any, backend: Any) -> None:
    """More entries than the shared memory of a block holds."""
    store = make_store([16500], heads=1, dim=64, page_size=128, dtype=backend.dtypes[0])
    pages = torch.arange(129, dtype=torch.int32).expand(1, 1, 129).contiguous()
    counts = torch.full((1, 1), 129, dtype=torch.int32)
    logits = torch.full((1, 1, 129 * 128), -torch.inf)
    logits[:, :, :16500] = 3 * torch.randn((1, 1, 16500), generator=generator(1))
    tokens, taken = ops.prune(logits, store.lengths, 128, pages, counts, 0.6)
    want = smallest_set(logits[0, :, :16500], 0.6)
    assert abs(int(taken) - len(want)) <= 1
    inside = torch.zeros(16500, dtype=torch.bool)
    inside[tokens[0, 0, : int(taken)].long()] = True
    assert int((inside != torch.isin(torch.arange(16500), want)).sum()) <= 2


def test_threads_change_no_bit() -> None:
    cpu = kernels.load("cpu")
    store = make_store([700, 130], heads=3, dim=64, page_size=16, dtype=torch.bfloat16)
    q, lists = make_query(store, 2), random_lists(store, 3, 40)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        codes, ranges = coded(cpu, store)
        logits = cpu.estimate(q, codes, ranges, store.lengths, 16, *lists, 0.4)
        found.append((codes, ranges, logits, *cpu.prune(logits, store.lengths, 16, *lists, 0.9)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_rule_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 3.0, -9.0]]).log().nan_to_num(-torch.inf)
    for p, want in (
        (0.0, [0]),
        (0.33, [0]),
        (0.34, [0, 3]),
        (0.7, [0, 2, 3]),
        (0.99, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ):
        assert smallest_set(logits, p).tolist() == want
    two = torch.tensor([[0.0, -torch.inf, -torch.inf], [-torch.inf, 0.0, -torch.inf]])
    assert smallest_set(two, 0.5).tolist() == [0] and smallest_set(two, 0.51).tolist() == [0, 1]
    inside = torch.tensor([True, True, False])
    check_smallest(two, inside, 0.51)
    with pytest.raises(AssertionError):
        check_smallest(two, inside, 0.49)
    padded = F.pad(two, (0, 1), value=-torch.inf)[None]
    one = torch.zeros((1, 1, 1), dtype=torch.int32), torch.ones((1, 1), dtype=torch.int32)
    assert REFERENCE.prune(padded, torch.tensor([3], dtype=torch.int32), 4, *one, 0.51)[1].tolist() == [[2]]
