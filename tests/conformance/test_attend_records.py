"""What attention leaves behind: mass, counts of reads, the logarithm of the sum, and NaN only where it was read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DTYPES, REFERENCE, ROUNDOFF, Store, check_attend, generator, make_query, make_store
from kernel_checks import LISTED, check_lse, check_mass, check_visits, lists
from torch import Tensor

GROUP = 4


@pytest.fixture
def store(backend: Any) -> Store:
    return make_store(lengths(backend), heads=2, dim=64, page_size=16, dtype=backend.dtype(1))


def lengths(backend: Any) -> list[int]:
    return [backend.long(1100), 0, 1, 16, 17]


def records(store: Store) -> tuple[Tensor, Tensor]:
    shape = (store.lengths.shape[0], 2, int(store.lengths.max()))
    return torch.ones(shape), torch.zeros(shape, dtype=torch.int32)


@pytest.mark.parametrize("listed", LISTED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mass_is_the_probability_of_each_slot(ops: Any, backend: Any, dtype: torch.dtype, listed: str) -> None:
    store = make_store(lengths(backend), heads=2, dim=64, page_size=16, dtype=dtype)
    q, options = make_query(store, GROUP), lists(store, listed)
    check_mass(ops, store, q, "last", **options)
    check_mass(ops, store, q, "sum", **options, sinks=torch.randn(2 * GROUP, generator=generator(4)))


@pytest.mark.parametrize("listed", ["kv heads", "tokens of kv heads"])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_mass_of_slots_that_were_not_read_is_zero(ops: Any, store: Store, listed: str, with_sinks: bool) -> None:
    mass, visits = records(store)
    options: dict[str, Any] = {**lists(store, listed, 2), "sinks": torch.zeros(2 * GROUP) if with_sinks else None}
    ops.attend(make_query(store, GROUP), store.paged, 0.125, mass=mass, mass_mode="last", visits=visits, **options)
    for row, length in enumerate(store.lengths.tolist()):
        unread = visits[row, :, :length] == 0
        assert (mass[row, :, :length][unread] == 0).all()
        if length:
            total = mass[row, :, :length].sum(1)
            assert (total < GROUP).all() if with_sinks else torch.allclose(total, torch.full((2,), 1.0 * GROUP))


@pytest.mark.parametrize("listed", LISTED[1:])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_an_empty_list_of_a_row_that_is_not_gives_zeros(ops: Any, store: Store, listed: str, with_sinks: bool) -> None:
    q, options = make_query(store, GROUP), lists(store, listed)
    options["counts"][0, 0] = 0
    if with_sinks:
        options["sinks"] = torch.randn(2 * GROUP, generator=generator(4))
    heads = 1 if listed.endswith("query heads") else GROUP
    mass, visits = records(store)
    got = ops.attend(q, store.paged, 0.125, mass=mass, mass_mode="last", visits=visits, **options)
    assert (got[0, :heads] == 0).all() and got.isfinite().all() and (got[0, heads:] != 0).any()
    assert mass.isfinite().all()
    for row, length in enumerate(store.lengths.tolist()):
        assert (mass[row, :, :length][visits[row, :, :length] == 0] == 0).all()
    want = REFERENCE.attend(q.double(), store.wide().paged, 0.125, **options)
    assert (want[0, :heads] == 0).all() and want.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, -torch.inf], ids=str)
def test_slots_that_were_not_read_have_no_mass_whatever_the_others_weigh(ops: Any, store: Store, value: float) -> None:
    """A NaN among the entries read, or nothing but -inf: NaN there, 0 elsewhere."""
    q, options = make_query(store, GROUP), lists(store, "kv heads")
    q[0, :, 0] = 1.0
    read = options["pages"][0, 0, : int(options["counts"][0, 0])].long()
    if value == value:
        store.k_pages[store.page_table[0, read].long(), 0, :, 0] = value
    else:
        store.k_pages[int(store.page_table[0, int(read[1])]), 0, 3, 0] = value
    mass, visits = records(store)
    got = ops.attend(q, store.paged, 0.125, mass=mass, mass_mode="last", visits=visits, **options)
    assert got[0, :GROUP].isnan().all() and got[0, GROUP:].isfinite().all()
    length = int(store.lengths[0])  # what lies behind it is not written
    mass, visits = mass[0, :, :length], visits[0, :, :length]
    assert torch.equal(mass[0].isnan(), visits[0] > 0)
    assert (mass[0][visits[0] == 0] == 0).all() and mass[1].isfinite().all()


def test_mass_that_nobody_wants_stays(ops: Any, store: Store) -> None:
    mass = torch.rand((len(store.lengths), 2, 1100), generator=generator(6))
    before = mass.clone()
    ops.attend(make_query(store, GROUP), store.paged, 0.125, mass=mass)
    assert torch.equal(mass, before)


@pytest.mark.parametrize("listed", LISTED)
def test_visits_count_every_read_of_every_query_head(ops: Any, store: Store, listed: str) -> None:
    check_visits(ops, store, make_query(store, GROUP), **lists(store, listed))


# ---- The logarithm of the sum of exponentials ------------------------------------------------------------------------


@pytest.mark.parametrize("listed", LISTED)
@pytest.mark.parametrize(("softcap", "with_sinks"), [(0.0, False), (0.0, True), (5.0, True)])
def test_the_logarithm_of_the_sum(ops: Any, store: Store, listed: str, softcap: float, with_sinks: bool) -> None:
    sinks = torch.randn(2 * GROUP, generator=generator(4)) * 3 if with_sinks else None
    options = {**lists(store, listed), "softcap": softcap, "sinks": sinks}
    if listed != "dense":
        options["counts"][0, 0] = 0
    got = check_lse(ops, store, make_query(store, GROUP), 0.25, **options)
    torch.testing.assert_close(got[1], torch.full((8,), -torch.inf) if sinks is None else sinks, rtol=1e-6, atol=1e-6)


def test_the_logarithm_of_long_rows(ops: Any, backend: Any) -> None:
    store = make_store([2300, 5, 1024], heads=2, dim=64, page_size=16, dtype=backend.dtype(0))
    check_lse(ops, store, make_query(store, 2), 0.125, sinks=torch.tensor([1.0, -2.0, 30.0, 0.5]))
    check_lse(ops, store, make_query(store, 2), 0.125)


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_the_logarithm_of_what_is_not_finite(ops: Any, store: Store, value: float, with_sinks: bool) -> None:
    q = make_query(store, GROUP)
    q[:, :, 0] = 1.0
    store.k_pages[int(store.page_table[3, 0]), 0, 5, 0] = value
    for row in (2, 4):  # all that these read
        store.k_pages[store.page_table[row, : -(-int(store.lengths[row]) // 16)].long(), 1, :, 0] = value
    check_lse(ops, store, q, 0.125, sinks=torch.zeros(8) if with_sinks else None)


def test_two_halves_merge_into_the_whole(ops: Any, backend: Any) -> None:
    """Disjoint lists of tokens, of which one call has the sink."""
    store = make_store([120], heads=2, dim=64, page_size=16, dtype=backend.dtype(0))
    q, sinks = make_query(store, 2), torch.tensor([0.3, -1.0, 2.0, 0.0])
    parts, logs = [], []
    for first in (0, 1):
        tokens = torch.arange(first, 120, 2, dtype=torch.int32).expand(1, 2, -1).contiguous()
        lse = torch.zeros((1, 4))
        options = {"tokens": tokens, "counts": torch.full((1, 2), 60, dtype=torch.int32), "lse": lse}
        parts.append(ops.attend(q, store.paged, 0.125, sinks=sinks if first else None, **options).double())
        logs.append(lse.double())
    weights = torch.softmax(torch.stack(logs), dim=0)[..., None]
    whole = ops.attend(q, store.paged, 0.125, sinks=sinks).double()
    torch.testing.assert_close((weights * torch.stack(parts)).sum(0), whole, rtol=1e-2, atol=1e-2)


# ---- NaN and infinity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["k", "v"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("listed", ["kv heads", "query heads"])
def test_nan_and_infinity_leak_only_from_entries_that_are_read(
    ops: Any, backend: Any, store: Store, stored: str, value: float, listed: str
) -> None:
    q, options = make_query(store, GROUP), lists(store, listed)
    clean = ops.attend(q, store.paged, 0.125, **options)
    spoilt = store.clone()
    target = spoilt.k_pages if stored == "k" else spoilt.v_pages
    listed_pages = options["pages"][0]
    page = int(listed_pages[0, 2])
    target[int(store.page_table[0, page]), :, 3, 5] = value
    got = ops.attend(q, spoilt.paged, 0.125, **options)
    want = REFERENCE.attend(q.double(), spoilt.wide().paged, 0.125, **options)
    # An infinite value may become NaN in the CUDA kernels: weights are multiplied in two parts, one of which may be 0.
    assert torch.equal(got.isfinite(), want.isfinite())
    if backend.name == "cpu" or stored == "k" or value != value:
        assert torch.equal(got.isnan(), want.isnan())
    per_list = 2 * GROUP // listed_pages.shape[0]
    for head in range(2 * GROUP):
        if page not in listed_pages[head // per_list]:
            assert torch.equal(got[0, head], clean[0, head])
    assert torch.equal(got[1:], clean[1:])


@pytest.mark.parametrize("length", [1025, 2049])
def test_a_chunk_whose_logits_are_all_minus_infinity_counts_for_nothing(ops: Any, backend: Any, length: int) -> None:
    store = make_store([length], heads=1, dim=64, page_size=16, dtype=backend.dtype(0))
    q = make_query(store, 2)
    q[0, :, 0] = 1.0
    last = int(store.page_table[0, (length - 1) // 16])
    store.k_pages[last, 0, 0, 0] = -torch.inf
    got = ops.attend(q, store.paged, 0.125)
    shorter = Store(store.k_pages, store.v_pages, store.bounds, store.page_table, store.lengths - 1)
    assert got.isfinite().all()
    want = check_attend(ops, shorter, q, 0.125)
    assert torch.allclose(got, want, rtol=4 * ROUNDOFF[q.dtype] + 1e-4, atol=1e-5)


def test_a_row_whose_logits_are_all_minus_infinity_is_nan(ops: Any, backend: Any) -> None:
    store = make_store([3], heads=1, dim=64, page_size=16, dtype=backend.dtype(0))
    q = make_query(store, 1)
    q[0, :, 0] = 1.0
    store.k_pages[int(store.page_table[0, 0]), 0, :3, 0] = -torch.inf
    assert ops.attend(q, store.paged, 0.125).isnan().all()
    assert (ops.attend(q, store.paged, 0.125, sinks=torch.zeros(1)) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [2, 4, 5])
@pytest.mark.parametrize("page_size", [1, 4, 5, 8, 17])
def test_nan_of_one_row_stays_out_of_the_next(ops: Any, dtype: torch.dtype, group: int, page_size: int) -> None:
    """Odd pages that fill whole vectors of weights: what stands behind the last weight is another row's."""
    lengths = [16 * page_size + 1, 16 * page_size]
    store = make_store(lengths, heads=2, dim=64, page_size=page_size, dtype=dtype)
    q = make_query(store, group)
    clean = ops.attend(q, store.paged, 0.125)
    last = int(store.page_table[0, 16])
    store.k_pages[last, :, 0] = torch.nan
    got = ops.attend(q, store.paged, 0.125)
    assert got[0].isnan().all() and torch.equal(got[1], clean[1])
