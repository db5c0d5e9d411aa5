"""Random calls of every op, and whether a backend's answer is one the contract allows; ``kernel_fuzz.py`` runs them.

A case is a function of its name ``SEED/NUMBER`` alone. Answers are compared with ``reference`` in float64, within the
error budgets of the kernel tests; where an answer is NaN or infinite, it must be that too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from _fuzz_draw import PAGE_SIZES, SPECIAL, Case, agrees, drawn_lists, equal, finite, make_case, some_lists
from kernel_cases import REFERENCE, ROUNDOFF, SMALLEST, UNIT, Store, valid_lists, weight_error
from prune_checks import check_estimate, check_prune
from torch import Tensor

from questbench.kernels._codes import empty_codes
from questbench.kernels._ops import Ops


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
    same = equal(got.k_pages, want.k_pages) and equal(got.v_pages, want.v_pages) and equal(got.bounds, want.bounds)
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
    largest = finite(store.bounds.double()).abs().amax(axis, keepdim=True).expand_as(store.bounds).contiguous()
    widest = store.paged._replace(bounds=largest)
    magnitude = REFERENCE.score(finite(q.double()).abs(), widest, skip_newest=skip_newest)
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


def _attend(ops: Ops, case: Case) -> bool:
    choose, store, q = case.choose, case.store, case.q
    scale, softcap, options = q.shape[2] ** -0.5, choose.choice([0.0, 0.0, 3.0, 50.0]), some_lists(case)
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
    clean = Store(finite(store.k_pages), store.v_pages, store.bounds, store.page_table, store.lengths)
    widest = finite(q) if prefix_q is None else torch.maximum(finite(q).abs(), prefix_q.abs())
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
    return equal(ops.attend_top(*rest, **rule), Ops.attend_top(ops, *rest, **rule))


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
    same = equal(got.k_pages, want.k_pages) and equal(got.v_pages, want.v_pages)
    if weights is not None and want_weights is not None:
        same = same and equal(weights, want_weights)
    return same and torch.equal(got.lengths, want.lengths) and torch.equal(places, want_places)


def _quantize(ops: Ops, case: Case) -> bool:
    """The same bits in every slot, those behind a row's end and before its newest entries included."""
    choose, store = case.choose, case.store
    if case.special:
        case.spoil(store.k_pages, choose.choice([1, 6]))
    rows, longest = len(store.lengths), int(store.lengths.max())
    incoming = choose.choice([0, 1, 2, longest, longest + 3])
    new = None
    if choose.random() < 0.5:
        new = torch.tensor([choose.randint(0, incoming) for _ in range(rows)], dtype=torch.int32)
    slots, left = longest + choose.choice([0, 2]), []
    for backend in (ops, REFERENCE):
        codes, ranges = empty_codes(rows, case.heads, slots, case.q.shape[2], case.q.device)
        backend.quantize(store.paged, codes.fill_(0x5A), ranges.fill_(7.0), incoming, new)
        left.append((codes[:, :, :longest], ranges[:, :, :longest], codes[:, :, longest:], ranges[:, :, longest:]))
    (codes, ranges, behind, beyond), (want_codes, want_ranges, *_) = left
    untouched = bool((behind == 0x5A).all()) and bool((beyond == 7.0).all())
    return untouched and torch.equal(codes, want_codes) and equal(ranges, want_ranges)


def _estimate(ops: Ops, case: Case) -> bool:
    if case.special:
        case.spoil(case.store.k_pages, case.choose.choice([1, 6]))
    lists = drawn_lists(case, case.heads * case.choose.choice([1, case.group]))
    check_estimate(ops, case.store, case.q, lists, softcap=case.choose.choice([0.0, 0.0, 3.0, 50.0]))
    return True


def _prune(ops: Ops, case: Case) -> bool:
    choose, lists = case.choose, drawn_lists(case, case.heads * case.choose.choice([1, case.group]))
    logits = case.normal(*case.q.shape[:2], lists[0].shape[2] * case.store.page_size) * choose.choice([0.1, 3.0, 30.0])
    if choose.random() < 0.4:
        logits = (logits / 2).round()  # ties
    if case.special:
        case.spoil(logits, choose.choice([1, 6, 60]))
        if choose.random() < 0.3:
            logits[:, choose.randrange(logits.shape[1])] = choose.choice([-torch.inf, torch.inf])
    check_prune(ops, case.store, logits, lists, choose.choice([0.0, 1e-6, 0.5, 0.85, 0.999, 1.0, choose.random()]))
    return True


OPS: dict[str, tuple[int, Callable[[Ops, Case], bool]]] = {
    "append": (2, _append),
    "score": (3, _score),
    "select": (4, _select),
    "attend": (6, _attend),
    "attend_top": (2, _attend_top),
    "evict": (1, _evict),
    "quantize": (1, _quantize),
    "estimate": (2, _estimate),
    "prune": (2, _prune),
}
"""How often each op is called, relative to the others, and what calls it."""


def run_case(ops: Ops, name: str) -> str | None:
    """One call; ``None`` if the answer is allowed, else what was asked."""
    op = random.Random(f"op {name}").choices(list(OPS), [share for share, _ in OPS.values()])[0]
    case = make_case(name, op)
    try:
        return None if OPS[op][1](ops, case) else case.about
    except Exception as error:  # a call that raises differs too
        return f"{case.about}: {type(error).__name__}: {error}"
