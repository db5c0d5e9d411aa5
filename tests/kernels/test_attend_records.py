"""What attention leaves behind: attention mass, counts of entries read, and NaN only where it was read."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import (
    DTYPES,
    REFERENCE,
    UNIT,
    Store,
    check_attend,
    generator,
    make_query,
    make_store,
    random_lists,
    weight_error,
)
from torch import Tensor

from questbench.kernels._ops import MassMode, Ops

LENGTHS = [1100, 0, 1, 16, 17]
GROUP = 4


@pytest.fixture(params=DTYPES, ids=str)
def store(request: pytest.FixtureRequest) -> Store:
    return make_store(LENGTHS, heads=2, dim=64, page_size=16, dtype=request.param)


def lists(store: Store, listed: str) -> dict[str, Tensor]:
    heads = {"dense": 0, "kv heads": 2, "query heads": 2 * GROUP}[listed]
    if not heads:
        return {}
    pages, counts = random_lists(store, heads, 5)
    return {"pages": pages, "counts": counts}


@pytest.mark.parametrize("listed", ["dense", "kv heads", "query heads"])
@pytest.mark.parametrize("mode", ["last", "sum"])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_mass_is_the_probability_of_each_slot(
    ops: Ops, store: Store, listed: str, mode: MassMode, with_sinks: bool
) -> None:
    q = make_query(store, GROUP)
    options = lists(store, listed)
    if with_sinks:
        options["sinks"] = torch.randn(2 * GROUP, generator=generator(4))
    before = torch.rand((len(LENGTHS), 2, max(LENGTHS) + 7), generator=generator(6))
    mass, want = before.clone(), before.double()
    out = ops.attend(q, store.paged, 0.125, mass=mass, mass_mode=mode, **options)
    REFERENCE.attend(q.double(), store.wide().paged, 0.125, mass=want, mass_mode=mode, **options)
    share = want - before.double() if mode == "sum" else want
    relative = weight_error(store, q, 0.125).view(len(LENGTHS), 2, GROUP).amax(2)[..., None]
    assert ((mass.double() - want).abs() <= relative * share.abs() + (GROUP + 1) * UNIT * want + 1e-36).all()
    assert torch.equal(out, ops.attend(q, store.paged, 0.125, **options))
    for row, length in enumerate(LENGTHS):
        assert torch.equal(mass[row, :, length:], before[row, :, length:])
        if mode == "last" and length and not with_sinks:
            total = mass[row, :, :length].double().sum(1)
            assert ((total - GROUP).abs() <= GROUP * relative[row, :, 0] + length * UNIT * GROUP).all()


@pytest.mark.parametrize("with_sinks", [False, True])
def test_mass_of_slots_that_were_not_read_is_zero(ops: Ops, store: Store, with_sinks: bool) -> None:
    q = make_query(store, GROUP)
    pages, counts = random_lists(store, 2, 2)
    mass, visits = torch.ones((len(LENGTHS), 2, 1100)), torch.zeros((len(LENGTHS), 2, 1100), dtype=torch.int32)
    sinks = torch.zeros(2 * GROUP) if with_sinks else None
    ops.attend(
        q,
        store.paged,
        0.125,
        pages=pages,
        counts=counts,
        sinks=sinks,
        mass=mass,
        mass_mode="last",
        visits=visits,
    )
    for row, length in enumerate(LENGTHS):
        unread = visits[row, :, :length] == 0
        assert (mass[row, :, :length][unread] == 0).all()
        if length:
            total = mass[row, :, :length].sum(1)
            assert (total < GROUP).all() if with_sinks else torch.allclose(total, torch.full((2,), 1.0 * GROUP))


@pytest.mark.parametrize("listed", ["kv heads", "query heads"])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_an_empty_list_of_a_row_that_is_not_gives_zeros(ops: Ops, store: Store, listed: str, with_sinks: bool) -> None:
    q, options = make_query(store, GROUP), lists(store, listed)
    options["counts"][0, 0] = 0
    if with_sinks:
        options["sinks"] = torch.randn(2 * GROUP, generator=generator(4))
    heads = GROUP if listed == "kv heads" else 1
    mass, visits = torch.ones((len(LENGTHS), 2, 1100)), torch.zeros((len(LENGTHS), 2, 1100), dtype=torch.int32)
    got = ops.attend(q, store.paged, 0.125, mass=mass, mass_mode="last", visits=visits, **options)
    assert (got[0, :heads] == 0).all() and got.isfinite().all() and (got[0, heads:] != 0).any()
    assert mass.isfinite().all()
    for row, length in enumerate(LENGTHS):
        assert (mass[row, :, :length][visits[row, :, :length] == 0] == 0).all()
    want = REFERENCE.attend(q.double(), store.wide().paged, 0.125, **options)
    assert (want[0, :heads] == 0).all() and want.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, -torch.inf], ids=str)
def test_slots_that_were_not_read_have_no_mass_whatever_the_others_weigh(ops: Ops, store: Store, value: float) -> None:
    """A NaN among the entries read, or nothing but -inf: NaN there, 0 elsewhere."""
    q, options = make_query(store, GROUP), lists(store, "kv heads")
    q[0, :, 0] = 1.0
    read = options["pages"][0, 0, : int(options["counts"][0, 0])].long()
    if value == value:
        store.k_pages[store.page_table[0, read].long(), 0, :, 0] = value
    else:
        store.k_pages[int(store.page_table[0, int(read[1])]), 0, 3, 0] = value
    mass, visits = torch.ones((len(LENGTHS), 2, 1100)), torch.zeros((len(LENGTHS), 2, 1100), dtype=torch.int32)
    got = ops.attend(q, store.paged, 0.125, mass=mass, mass_mode="last", visits=visits, **options)
    assert got[0, :GROUP].isnan().all() and got[0, GROUP:].isfinite().all()
    length = int(store.lengths[0])  # what lies behind it is not written
    mass, visits = mass[0, :, :length], visits[0, :, :length]
    assert torch.equal(mass[0].isnan(), visits[0] > 0)
    assert (mass[0][visits[0] == 0] == 0).all() and mass[1].isfinite().all()


def test_mass_that_nobody_wants_stays(ops: Ops, store: Store) -> None:
    mass = torch.rand((len(LENGTHS), 2, 1100), generator=generator(6))
    before = mass.clone()
    ops.attend(make_query(store, GROUP), store.paged, 0.125, mass=mass)
    assert torch.equal(mass, before)


@pytest.mark.parametrize("listed", ["dense", "kv heads", "query heads"])
def test_visits_count_every_read_of_every_query_head(ops: Ops, store: Store, listed: str) -> None:
    visits = torch.randint(0, 9, (len(LENGTHS), 2, 1111), generator=generator(7), dtype=torch.int32)
    want = visits.clone()
    q, options = make_query(store, GROUP), lists(store, listed)
    ops.attend(q, store.paged, 0.125, visits=visits, **options)
    REFERENCE.attend(q, store.paged, 0.125, visits=want, **options)
    assert torch.equal(visits, want)


@pytest.mark.parametrize("stored", ["k", "v"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("listed", ["kv heads", "query heads"])
def test_nan_and_infinity_leak_only_from_entries_that_are_read(
    ops: Ops, store: Store, stored: str, value: float, listed: str
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
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.isinf(), want.isinf())
    per_list = 2 * GROUP // listed_pages.shape[0]
    for head in range(2 * GROUP):
        if page not in listed_pages[head // per_list]:
            assert torch.equal(got[0, head], clean[0, head])
    assert torch.equal(got[1:], clean[1:])


@pytest.mark.parametrize("length", [1025, 2049])
def test_a_chunk_whose_logits_are_all_minus_infinity_counts_for_nothing(ops: Ops, length: int) -> None:
    store = make_store([length], heads=1, dim=64, page_size=16, dtype=torch.float32)
    q = make_query(store, 2)
    q[0, :, 0] = 1.0
    last = int(store.page_table[0, (length - 1) // 16])
    store.k_pages[last, 0, 0, 0] = -torch.inf
    got = ops.attend(q, store.paged, 0.125)
    shorter = Store(store.k_pages, store.v_pages, store.bounds, store.page_table, store.lengths - 1)
    assert got.isfinite().all()
    want = check_attend(ops, shorter, q, 0.125)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_row_whose_logits_are_all_minus_infinity_is_nan(ops: Ops) -> None:
    store = make_store([3], heads=1, dim=64, page_size=16, dtype=torch.float32)
    q = make_query(store, 1)
    q[0, :, 0] = 1.0
    store.k_pages[int(store.page_table[0, 0]), 0, :3, 0] = -torch.inf
    assert ops.attend(q, store.paged, 0.125).isnan().all()
    assert (ops.attend(q, store.paged, 0.125, sinks=torch.zeros(1)) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [2, 4, 5])
@pytest.mark.parametrize("page_size", [1, 5, 17])
def test_nan_of_one_row_stays_out_of_the_next(ops: Ops, dtype: torch.dtype, group: int, page_size: int) -> None:
    """Odd pages that fill whole vectors of weights: what stands behind the last weight is another row's."""
    lengths = [16 * page_size + 1, 16 * page_size]
    store = make_store(lengths, heads=2, dim=64, page_size=page_size, dtype=dtype)
    q = make_query(store, group)
    clean = ops.attend(q, store.paged, 0.125)
    last = int(store.page_table[0, 16])
    store.k_pages[last, :, 0] = torch.nan
    got = ops.attend(q, store.paged, 0.125)
    assert got[0].isnan().all() and torch.equal(got[1], clean[1])
