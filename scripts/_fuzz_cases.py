"""Random calls of every op, and whether a backend's answer is one the contract allows; ``kernel_fuzz.py`` runs them.

A case is a function of its name ``SEED/NUMBER`` alone. Answers are compared with ``reference`` in float64, within the
error budgets of the kernel tests; where an answer is NaN or infinite, it must be that too.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "kernels"))

from kernel_cases import DTYPES, REFERENCE, ROUNDOFF, SMALLEST, UNIT, Store, make_store, valid_lists, weight_error

from questbench.kernels._ops import Ops

DIMS = list(range(16, 257, 2))
REAL_DIMS = [40, 48, 64, 72, 80, 88, 96, 104, 112, 120, 128, 256]
PAGE_SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 64, 128]
GROUPS = [1, 1, 1, 2, 3, 4, 5, 7, 8, 16]
SPECIAL = [torch.nan, torch.inf, -torch.inf]


@dataclass
class Case:
    """One store, one query, and the source of every further choice."""

    choose: random.Random
    source: torch.Generator
    store: Store
    q: Tensor
    heads: int
    group: int
    special: bool
    about: str

    def normal(self, *shape: int) -> Tensor:
        """Random numbers of the case."""
        return torch.randn(shape, generator=self.source)

    def spoil(self, tensor: Tensor, times: int) -> None:
        """Put NaN and infinities into a few elements, in place."""
        flat = tensor.view(-1)
        for _ in range(times if flat.numel() else 0):
            flat[self.choose.randrange(flat.numel())] = self.choose.choice(SPECIAL)


def make_case(name: str, op: str) -> Case:
    """The case called ``SEED/NUMBER`` for one op."""
    choose = random.Random(name)
    source = torch.Generator().manual_seed(choose.getrandbits(60))
    dim = choose.choice(DIMS if choose.random() < 0.6 else REAL_DIMS)
    size, group, heads = choose.choice(PAGE_SIZES), choose.choice(GROUPS), choose.choice([1, 1, 2, 3])
    dtype = choose.choice(DTYPES)
    longest = min(choose.choice([2, 20, 100, 300]), 24 * size)
    if op == "attend" and choose.random() < 0.03:  # several chunks of entries
        longest, size = 1500, max(size, 31)
    lengths = [
        choose.choice([0, 1, size, longest, choose.randint(0, longest)]) for _ in range(choose.choice([1, 2, 3]))
    ]
    if op == "evict":
        lengths[0] = max(lengths[0], 2)
    by_channel = group == 1 and op in ("append", "score", "attend_top") and choose.random() < 0.5
    shape = {"heads": heads, "dim": dim, "page_size": size, "dtype": dtype, "by_channel": by_channel}
    store = make_store(lengths, seed=choose.getrandbits(30), **shape)
    q = torch.randn((len(lengths), heads * group, dim), generator=source).to(dtype)
    special = choose.random() < 0.3
    about = f"{op}: {str(dtype)[6:]}, {heads} x {group} heads of {dim}, pages of {size}, rows {lengths}"
    about += ", by channel" * by_channel + ", NaN and infinities" * special
    return Case(choose, source, store, q, heads, group, special, about)


def agrees(got: Tensor, want: Tensor, budget: Tensor, narrow: Tensor) -> bool:
    """Within the budget where the answer is finite; elsewhere what float64 gives, or what fp32 gives (``narrow``)."""
    wide, finite = got.double(), want.isfinite()
    near = (wide - want).abs() <= budget
    alike = _same(wide, want) | _same(wide, narrow.double())
    return bool(torch.where(finite, near, alike).all())


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(_same(a, b).all())


def _finite(tensor: Tensor) -> Tensor:
    return torch.nan_to_num(tensor, 0.0, 0.0, 0.0)


def _append(ops: Ops, case: Case) -> bool:
    store, incoming = case.store, case.choose.choice([0, 1, 1, 2, 5, 40])
    rows, size = store.lengths.shape[0], store.page_size
    extra = incoming // size + 2
    pool = store.k_pages.shape[0]
    entries = case.normal(2, rows, case.heads, incoming, case.q.shape[2]).to(case.q.dtype)
    if case.special:
        case.spoil(entries, 3)
    new = None
    if case.choose.random() < 0.5:
        new = torch.tensor([case.choose.randint(0, incoming) for _ in range(rows)], dtype=torch.int32)
    # Pages that the new entries need: fresh ones behind those of each row.
    table = torch.zeros((rows, store.page_table.shape[1] + extra), dtype=torch.int32)
    for row, length in enumerate(store.lengths.tolist()):
        used = -(-length // size)
        table[row, :used] = store.page_table[row, :used]
        table[row, used : used + extra] = torch.arange(pool + row * extra, pool + (row + 1) * extra)
    grown = _grown(store, rows * extra, table)
    bounded = case.choose.random() < 0.8
    left = []
    for backend in (ops, REFERENCE):
        copy = grown.clone()
        backend.append(entries[0], entries[1], copy.paged if bounded else copy.paged._replace(bounds=None), new)
        left.append(copy)
    got, want = left
    same = _equal(got.k_pages, want.k_pages) and _equal(got.v_pages, want.v_pages) and _equal(got.bounds, want.bounds)
    return same and torch.equal(got.lengths, want.lengths)


def _grown(store: Store, more: int, table: Tensor) -> Store:
    def longer(tensor: Tensor, pages: int) -> Tensor:
        return torch.cat([tensor, torch.full((pages, *tensor.shape[1:]), torch.nan, dtype=tensor.dtype)])

    lanes = -(-(store.k_pages.shape[0] + more) // 64) - store.bounds.shape[0] if store.bounds.dim() == 5 else more
    return Store(
        longer(store.k_pages, more), longer(store.v_pages, more), longer(store.bounds, lanes), table, store.lengths
    )


def spoil_bounds(case: Case, times: int) -> None:
    """Bounds as keys that are NaN or infinite leave them, in place: the maximum is never below the minimum."""
    bounds, choose = case.store.bounds, case.choose
    axis = 3 if bounds.dim() == 5 else 2
    high, low = bounds.select(axis, 0), bounds.select(axis, 1)
    for _ in range(times):
        at = tuple(choose.randrange(size) for size in high.shape)
        pairs = [(torch.nan, torch.nan), (torch.inf, None), (None, -torch.inf), (torch.inf, -torch.inf)]
        above, below = choose.choice([*pairs, (torch.inf, torch.inf), (-torch.inf, -torch.inf)])
        if above is not None:
            high[at] = above
        if below is not None:
            low[at] = below


def _score(ops: Ops, case: Case) -> bool:
    store, q = case.store, case.q
    skip_newest = store.bounds.dim() == 5 or case.choose.random() < 0.5
    if case.special:
        spoil_bounds(case, 4)
        case.spoil(q, case.choose.choice([0, 1]))
    got = ops.score(q, store.paged, skip_newest=skip_newest)
    narrow = REFERENCE.score(q, store.paged, skip_newest=skip_newest)
    want = REFERENCE.score(q.double(), store.wide().paged, skip_newest=skip_newest)
    axis = 3 if store.bounds.dim() == 5 else 2
    largest = _finite(store.bounds.double()).abs().amax(axis, keepdim=True).expand_as(store.bounds).contiguous()
    widest = store.paged._replace(bounds=largest)
    magnitude = REFERENCE.score(_finite(q.double()).abs(), widest, skip_newest=skip_newest)
    return got.dtype == torch.float32 and agrees(got, want, (2 * q.shape[2] + 2) * UNIT * magnitude, narrow)


def _select(ops: Ops, case: Case) -> bool:
    choose, size = case.choose, case.choose.choice(PAGE_SIZES)
    rows, pages, group = choose.choice([1, 2, 3]), choose.choice([1, 2, 7, 16, 17, 40, 130, 400]), case.group
    scores = case.normal(rows, case.heads * group, pages) * choose.choice([1.0, 30.0])
    if choose.random() < 0.4:
        scores = (scores / 2).round()  # ties
    if case.special:
        case.spoil(scores, choose.choice([1, 5, pages]))
        if choose.random() < 0.5:
            scores[:, :, choose.randrange(pages)] = choose.choice(SPECIAL)
        if choose.random() < 0.3:
            scores[:, choose.randrange(case.heads * group)] = choose.choice([-torch.inf, torch.inf])
    lengths = torch.tensor([choose.choice([0, 1, pages * size, choose.randint(0, pages * size)]) for _ in range(rows)])
    lengths = lengths.to(torch.int32)
    merge, width = choose.choice(["none", "max", "sum_softmax", "sum_softmax"]), choose.randint(1, pages + 3)
    count: int | Tensor = choose.randint(0, width)
    if choose.random() < 0.4:
        count = torch.tensor([choose.randint(0, width) for _ in range(rows)], dtype=torch.int32)
    rule: dict[str, Any] = {"width": width, "force_newest": choose.random() < 0.5, "merge": merge, "group": group}
    rule["scale"] = choose.choice([1.0, 0.125, 0.3])
    got = ops.select(scores, lengths, size, count, **rule)
    want = REFERENCE.select(scores, lengths, size, count, **rule)
    if merge != "sum_softmax" or group == 1:
        return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    return torch.equal(got[1], want[1]) and valid_lists(scores, lengths, size, got, **rule)


def _lists(case: Case) -> dict[str, Tensor]:
    """Nothing (dense), or lists by KV head or by query head, some of them empty."""
    choose, store = case.choose, case.store
    kind, named = choose.choice(["dense", "kv heads", "query heads"]), choose.choice(["pages", "pages", "tokens"])
    if kind == "dense":
        return {}
    heads, most = case.heads * (1 if kind == "kv heads" else case.group), choose.randint(1, 30)
    rows = store.lengths.shape[0]
    pages, counts = (
        torch.full((rows, heads, most), -1, dtype=torch.int32),
        torch.zeros((rows, heads), dtype=torch.int32),
    )
    for row, length in enumerate(store.lengths.tolist()):
        total = length if named == "tokens" else -(-length // store.page_size)
        for head in range(heads):
            taken = choose.choice([0, min(total, most), choose.randint(0, min(total, most))])
            pages[row, head, :taken] = torch.tensor(sorted(choose.sample(range(total), taken)), dtype=torch.int32)
            counts[row, head] = taken
    return {named: pages, "counts": counts}


def _attend(ops: Ops, case: Case) -> bool:
    choose, store, q = case.choose, case.store, case.q
    scale, softcap, options = q.shape[2] ** -0.5, choose.choice([0.0, 0.0, 3.0, 50.0]), _lists(case)
    if case.special:
        softcap = min(softcap, 3.0)  # an infinite logit then leaves no weight that fp32 rounds to zero
        case.spoil(store.k_pages, choose.choice([0, 1, 6]))
        case.spoil(store.v_pages, choose.choice([0, 1, 6]))
        case.spoil(q, choose.choice([0, 0, 1]))
    if choose.random() < 0.3:
        options["sinks"] = case.normal(q.shape[1]) * 3
    prefix_q = case.normal(*q.shape).to(q.dtype) if choose.random() < 0.2 else None
    prefix = choose.choice([1, 5, 5000]) if prefix_q is not None else 0
    longest = int(store.lengths.max()) + choose.choice([0, 3])
    mode = choose.choice(["none", "last", "sum"])
    before = torch.rand((q.shape[0], case.heads, longest), generator=case.source)
    runs = []
    for backend, wide in ((ops, False), (REFERENCE, True), (REFERENCE, False)):
        widen: Callable[[Tensor], Tensor] = (lambda x: x.double()) if wide else (lambda x: x.clone())
        record = {"mass": widen(before), "visits": torch.zeros(before.shape, dtype=torch.int32)}
        record["lse"] = widen(torch.zeros(q.shape[:2]))
        stored = store.paged._replace(k=widen(store.k_pages), v=widen(store.v_pages))
        extra = {"prefix_q": None if prefix_q is None else widen(prefix_q), "prefix": prefix, "softcap": softcap}
        out = backend.attend(widen(q), stored, scale, mass_mode=mode, **record, **extra, **options)
        runs.append((out, record["mass"], record["visits"], record["lse"]))
    (got, mass, visits, lse), (want, want_mass, want_visits, want_lse), (narrow, narrow_mass, _, narrow_lse) = runs
    if not torch.equal(visits, want_visits) or got.dtype != q.dtype:
        return False
    clean = Store(_finite(store.k_pages), store.v_pages, store.bounds, store.page_table, store.lengths)
    widest = _finite(q) if prefix_q is None else torch.maximum(_finite(q).abs(), prefix_q.abs())
    relative = weight_error(clean, widest, scale, softcap)
    magnitude = REFERENCE.attend(
        q.double(), store.paged._replace(k=store.k_pages.double(), v=store.v_pages.double().abs()), scale,
        prefix_q=None if prefix_q is None else prefix_q.double(), prefix=prefix, softcap=softcap, **options,
    )  # fmt: skip
    rounded = ROUNDOFF[q.dtype] if q.dtype == torch.bfloat16 else 0.0
    budget = (relative[..., None] + rounded) * magnitude + ROUNDOFF[q.dtype] * want.abs() * (1 + UNIT)
    by_head = relative.view(q.shape[0], case.heads, case.group).amax(2)[..., None]
    share = want_mass - before.double() if mode == "sum" else want_mass
    allowed = by_head * share.abs() + (case.group + 1) * UNIT * want_mass.abs() + 1e-36
    summed = agrees(lse, want_lse, relative + 8 * UNIT * (1 + want_lse.abs()), narrow_lse)
    near = agrees(got, want, budget + SMALLEST[q.dtype], narrow) and agrees(mass, want_mass, allowed, narrow_mass)
    return near and summed


def _attend_top(ops: Ops, case: Case) -> bool:
    """The fused step equals the three ops, bit for bit."""
    choose, store, q = case.choose, case.store, case.q
    if case.special:
        spoil_bounds(case, 2)
        case.spoil(store.k_pages, choose.choice([0, 1]))
        case.spoil(q, choose.choice([0, 0, 1]))
    width = choose.randint(1, 30)
    width = max(width, min(30, store.page_table.shape[1]))
    count: int | Tensor = choose.randint(1, width)
    if choose.random() < 0.3:
        count = torch.tensor([choose.randint(0, width) for _ in range(q.shape[0])], dtype=torch.int32)
    newest = store.bounds.dim() == 5 or choose.random() < 0.5
    rule: dict[str, Any] = {"count": count, "width": width, "force_newest": newest}
    rule["merge"] = choose.choice(["none", "max", "sum_softmax"])
    rule["sinks"] = case.normal(q.shape[1]) if choose.random() < 0.3 else None
    rest = q, store.paged, q.shape[2] ** -0.5
    return _equal(ops.attend_top(*rest, **rule), Ops.attend_top(ops, *rest, **rule))


def _evict(ops: Ops, case: Case) -> bool:
    choose, store = case.choose, case.store
    longest = int(store.lengths.max())
    capacity, room = longest - 1, longest + choose.choice([0, 2])
    rows = store.lengths.shape[0]
    shared = choose.random() < 0.5
    positions = torch.zeros((rows, case.heads, room), dtype=torch.int32)
    for row in range(rows):
        for head in range(case.heads):
            order = torch.randperm(longest + 20, generator=case.source)[:longest].to(torch.int32)
            positions[row, head, :longest] = positions[row, 0, :longest] if shared and head else order
    mass = torch.randint(0, 9, (rows, case.heads, room), generator=case.source).float() / 4
    if case.special:
        flat = mass.view(-1)
        for _ in range(4):
            flat[choose.randrange(len(flat))] = choose.choice([torch.nan, torch.inf])
    # A candidate is left in every row: of `longest` different positions at least these are neither sinks nor recent.
    sinks = choose.randint(0, (longest - 1) // 2)
    recent = choose.randint(0, (longest - 1) // 2)
    weighed = choose.random() < 0.7
    left = []
    for backend in (ops, REFERENCE):
        copy, places, weights = store.clone(), positions.clone(), mass.clone() if weighed else None
        rule = {"capacity": capacity, "sinks": sinks, "recent": recent, "shared": shared}
        backend.evict(copy.paged, places, weights, **rule)
        left.append((copy, places, weights))
    (got, places, weights), (want, want_places, want_weights) = left
    same = _equal(got.k_pages, want.k_pages) and _equal(got.v_pages, want.v_pages)
    if weights is not None and want_weights is not None:
        same = same and _equal(weights, want_weights)
    return same and torch.equal(got.lengths, want.lengths) and torch.equal(places, want_places)


OPS: dict[str, Callable[[Ops, Case], bool]] = {
    "append": _append,
    "score": _score,
    "select": _select,
    "attend": _attend,
    "attend_top": _attend_top,
    "evict": _evict,
}
SHARES = {"append": 2, "score": 3, "select": 4, "attend": 6, "attend_top": 2, "evict": 1}
"""How often each op is called, relative to the others."""


def run_case(ops: Ops, name: str) -> str | None:
    """One call; ``None`` if the answer is allowed, else what was asked."""
    op = random.Random(f"op {name}").choices(list(SHARES), list(SHARES.values()))[0]
    case = make_case(name, op)
    try:
        return None if OPS[op](ops, case) else case.about
    except Exception as error:  # a call that raises differs too
        return f"{case.about}: {type(error).__name__}: {error}"
