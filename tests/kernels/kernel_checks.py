"""What an answer of a backend is held to, op by op: the tests of all backends, and the planted mistakes, use these."""

from __future__ import annotations

from typing import Any

import torch
from kernel_cases import (
    REFERENCE,
    UNIT,
    Store,
    empty_store,
    generator,
    make_query,
    make_store,
    random_lists,
    weight_error,
)
from torch import Tensor

from questbench.kernels._bounds import empty_bounds, write_bounds
from questbench.kernels._ops import MassMode

LISTED = ("dense", "kv heads", "query heads", "tokens of kv heads", "tokens of query heads")
"""What attention can read."""
SIZE = 16
"""Entries per page where ``select`` is tested."""
CAPACITY = 37
HELD = [CAPACITY + 1, CAPACITY, 5, CAPACITY + 1]
"""Lengths of the rows that are evicted from."""


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, NaN included."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def ragged(page_size: int, long: int) -> list[int]:
    """Many entries, none, one, a full page, one more, one less than two pages."""
    return [long, 0, 1, page_size, page_size + 1, 2 * page_size - 1]


def lists(store: Store, listed: str, count: int = 5, group: int = 4) -> dict[str, Tensor]:
    """The lists that one of ``LISTED`` stands for, as options of ``attend``."""
    if listed == "dense":
        return {}
    heads = store.k_pages.shape[1] * (group if listed.endswith("query heads") else 1)
    pages, counts = random_lists(store, heads, count)
    if not listed.startswith("tokens"):
        return {"pages": pages, "counts": counts}
    tokens, held = some_tokens(store, heads, 5 * count)
    return {"tokens": tokens, "counts": held}


def some_tokens(store: Store, heads: int, count: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Lists of slots, different for each of ``heads``; the newest entry is in every one."""
    source = generator(seed)
    rows = store.lengths.shape[0]
    tokens = torch.full((rows, heads, count + 1), -1, dtype=torch.int32)
    counts = torch.zeros((rows, heads), dtype=torch.int32)
    for row, length in enumerate(store.lengths.tolist()):
        for head in range(heads if length else 0):
            chosen = torch.randperm(length, generator=source)[: min(length, count) - 1]
            chosen = torch.cat([chosen[chosen != length - 1], torch.tensor([length - 1])]).sort().values
            tokens[row, head, : len(chosen)] = chosen.to(torch.int32)
            counts[row, head] = len(chosen)
    return tokens, counts


# ---- append and evict: the same bytes as the reference -------------------------------------------------------------


def entries(store: Store, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """New keys and values for every row."""
    rows, heads, dim = store.lengths.shape[0], store.k_pages.shape[1], store.k_pages.shape[3]
    both_kinds = torch.randn((2, rows, heads, count, dim), generator=generator(seed)).to(store.k_pages.dtype)
    return both_kinds[0], both_kinds[1]


def check_append(ops: Any, store: Store, k: Tensor, v: Tensor, new: Tensor | None = None, bounds: bool = True) -> Store:
    """One append by the backend and by the reference must leave the same cache."""
    want = store.clone()
    for backend, target in ((ops, store), (REFERENCE, want)):
        backend.append(k, v, target.paged if bounds else target.paged._replace(bounds=None), new)
    assert same(store.k_pages, want.k_pages)
    assert same(store.v_pages, want.v_pages)
    assert torch.equal(store.lengths, want.lengths)
    assert torch.allclose(store.bounds, want.bounds, rtol=0, atol=0, equal_nan=True)
    return store


def check_append_from(ops: Any, held: int, by_channel: bool) -> None:
    """Every number of entries from one slot on: up to three pages are touched."""
    for count in (*range(1, 12), 15, 16, 17, 18):
        store = empty_store(2, 5, heads=1, dim=64, page_size=8, dtype=torch.float16, by_channel=by_channel)
        check_append(ops, store, *entries(store, held))
        check_append(ops, store, *entries(store, count, 1))


def shuffled_positions(shared: bool, seed: int) -> Tensor:
    """Slots hold positions in any order, the newest last."""
    source = generator(seed)
    positions = torch.zeros((len(HELD), 2, CAPACITY + 4), dtype=torch.int32)
    for row, length in enumerate(HELD):
        for head in range(2):
            order = torch.randperm(length + 60, generator=source)[: length - 1]
            positions[row, head, :length] = torch.cat([order, torch.tensor([length + 60])]).to(torch.int32)
        if shared:
            positions[row, 1] = positions[row, 0]
    return positions


def quarters(seed: int) -> Tensor:
    """Mass of which sums over heads are exact and many are equal."""
    return torch.randint(0, 12, (len(HELD), 2, CAPACITY + 4), generator=generator(seed)).float() / 4


def check_evict(ops: Any, store: Store, positions: Tensor, mass: Tensor | None, **options: Any) -> Store:
    """The backend and the reference must leave the same bytes."""
    left = []
    for backend in (ops, REFERENCE):
        copy, places = store.clone(), positions.clone()
        weights = None if mass is None else mass.clone()
        backend.evict(copy.paged, places, weights, **{"capacity": CAPACITY, **options})
        left.append((copy, places, weights))
    (got, got_places, got_mass), (want, want_places, want_mass) = left
    assert same(got.k_pages, want.k_pages) and same(got.v_pages, want.v_pages)
    assert torch.equal(got.lengths, want.lengths) and torch.equal(got_places, want_places)
    if got_mass is not None and want_mass is not None:
        assert same(got_mass, want_mass)
    return got


# ---- score ---------------------------------------------------------------------------------------------------------


def check_score(ops: Any, store: Store, q: Tensor, skip_newest: bool, plain: Store | None = None) -> Tensor:
    """Scores within D roundings (and the last addition) of float64; -inf exactly where it is there.

    Args:
        plain: the same cache with bounds by page, where those of ``store`` are by channel.
    """
    wide = (plain or store).wide()
    got = ops.score(q, store.paged, skip_newest=skip_newest)
    want = REFERENCE.score(q.double(), wide.paged, skip_newest=skip_newest)
    largest = wide.bounds.abs().amax(2, keepdim=True).expand_as(wide.bounds).contiguous()
    magnitude = REFERENCE.score(q.double().abs(), wide.paged._replace(bounds=largest), skip_newest=skip_newest)
    assert got.dtype == torch.float32 and got.shape == want.shape
    assert torch.equal(got == -torch.inf, want == -torch.inf)
    scored = want > -torch.inf
    budget = (2 * q.shape[-1] + 2) * UNIT * magnitude[scored]
    assert ((got[scored].double() - want[scored]).abs() <= budget).all()
    return got


def check_table_width(ops: Any, pages: int, by_channel: bool) -> None:
    """All columns are written, whether the row has that page or not."""
    shape: dict[str, Any] = {"heads": 1, "dim": 64, "page_size": 8, "dtype": torch.float16}
    long = max(pages - 2, 1)
    store, plain = (make_store([long * 8, 3], **shape, by_channel=kind) for kind in (by_channel, False))
    store.page_table, plain.page_table = store.page_table[:, :pages], plain.page_table[:, :pages]
    assert check_score(ops, store, make_query(store, 1), True, plain).shape == (2, 1, pages)


def check_neighbours(ops: Any, start: int, dim: int, dtype: torch.dtype) -> None:
    """Bounds by channel of runs of physical pages that begin anywhere in a block, without and with a gap."""
    plain = make_store([150 * 8], heads=2, dim=dim, page_size=8, dtype=dtype)
    q, used = make_query(plain, 1), plain.page_table[0, :150].long()
    for gap in (0, 1):
        where = torch.arange(start, start + 150, dtype=torch.int32)
        where[100:] += gap
        moved = empty_store(1, 320, heads=2, dim=dim, page_size=8, dtype=dtype, by_channel=True)
        moved.bounds = empty_bounds(320, 2, dim, dtype, q.device, by_channel=True).fill_(torch.nan)
        for page, target in zip(used.tolist(), where.tolist(), strict=True):
            write_bounds(moved.bounds, target, plain.bounds[page])
        moved.page_table, moved.lengths = where[None], plain.lengths
        one = plain.clone()
        one.page_table = plain.page_table[:, :150]
        check_score(ops, moved, q, True, one)


# ---- select --------------------------------------------------------------------------------------------------------


def check_select(
    ops: Any, scores: Tensor, lengths: Tensor, count: int | Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """The backend's lists equal the reference's."""
    got = ops.select(scores, lengths, SIZE, count, **options)
    want = REFERENCE.select(scores, lengths, SIZE, count, **options)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    lists: tuple[Tensor, Tensor] = got
    return lists


def check_summed(ops: Any, group: int, pages: int) -> None:
    """The sum of softmax takes the best pages, up to rounding."""
    scores = torch.randn((2, 2 * group, pages), generator=generator(pages)) * 20
    lengths = torch.full((2,), pages * SIZE, dtype=torch.int32)
    options = {"force_newest": False, "merge": "sum_softmax", "group": group, "scale": 0.125}
    wanted = pages // 3 + 1
    got, counts = ops.select(scores, lengths, SIZE, wanted, width=wanted, **options)
    assert (counts == wanted).all()
    merged = torch.softmax(0.125 * scores.double(), dim=-1).view(2, 2, group, pages).sum(2)
    # Scaling and the subtraction of the largest score, then the sums over pages and heads and the exponential.
    relative = UNIT * (4 * 0.125 * float(scores.abs().max()) + pages + group + 16)
    for row in range(2):
        for head in range(2):
            chosen = got[row, head].long()
            assert (chosen.diff() > 0).all()
            rest = torch.ones(pages, dtype=torch.bool)
            rest[chosen] = False
            least, best = merged[row, head, chosen].min(), merged[row, head, rest].max()
            assert least * (1 + relative) >= best * (1 - relative)


# ---- attend --------------------------------------------------------------------------------------------------------


def check_mass(ops: Any, store: Store, q: Tensor, mode: MassMode, **options: Any) -> None:
    """Mass is the probability of each slot; what lies behind a row is left alone; the output is as without it."""
    rows, kv_heads = store.lengths.shape[0], store.k_pages.shape[1]
    group = q.shape[1] // kv_heads
    before = torch.rand((rows, kv_heads, int(store.lengths.max()) + 7), generator=generator(6))
    mass, want = before.clone(), before.double()
    out = ops.attend(q, store.paged, 0.125, mass=mass, mass_mode=mode, **options)
    REFERENCE.attend(q.double(), store.wide().paged, 0.125, mass=want, mass_mode=mode, **options)
    share = want - before.double() if mode == "sum" else want
    relative = weight_error(store, q, 0.125).view(rows, kv_heads, group).amax(2)[..., None]
    assert ((mass.double() - want).abs() <= relative * share.abs() + (group + 1) * UNIT * want + 1e-36).all()
    assert torch.equal(out, ops.attend(q, store.paged, 0.125, **options))
    for row, length in enumerate(store.lengths.tolist()):
        assert torch.equal(mass[row, :, length:], before[row, :, length:])
        if mode == "last" and length and options.get("sinks") is None:
            total = mass[row, :, :length].double().sum(1)
            assert ((total - group).abs() <= group * relative[row, :, 0] + length * UNIT * group).all()


def check_visits(ops: Any, store: Store, q: Tensor, **options: Any) -> None:
    """Every read of every query head is counted."""
    shape = (store.lengths.shape[0], store.k_pages.shape[1], int(store.lengths.max()) + 11)
    visits = torch.randint(0, 9, shape, generator=generator(7), dtype=torch.int32)
    want = visits.clone()
    ops.attend(q, store.paged, 0.125, visits=visits, **options)
    REFERENCE.attend(q, store.paged, 0.125, visits=want, **options)
    assert torch.equal(visits, want)


def check_lse(ops: Any, store: Store, q: Tensor, scale: float, **options: Any) -> Tensor:
    """The logarithm of the sum of exponentials, within the error of the sum; -inf, NaN where the reference has it."""
    rows, heads, _ = q.shape
    got, want = torch.full((rows, heads), 7.0), torch.full((rows, heads), 7.0, dtype=torch.float64)
    ops.attend(q, store.paged, scale, lse=got, **options)
    REFERENCE.attend(q.double(), store.wide().paged, scale, lse=want, **options)
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got == -torch.inf, want == -torch.inf)
    finite = want.isfinite()
    budget = weight_error(store, q, scale, options.get("softcap", 0.0)) + 8 * UNIT * (1 + want.abs())
    assert ((got.double() - want).abs() <= budget)[finite].all()
    return got
