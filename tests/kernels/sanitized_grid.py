"""A small grid over all CPU kernels, for a library that was built with the address sanitizer; a process of its own.

Tensors lie in memory of the sanitizer, which torch's allocator gets where it is preloaded: a read or a write outside of
one ends the process. With ``--overrun`` the last call makes one.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from kernel_cases import DTYPES, Store, make_query, make_store, random_lists
from kernel_checks import some_tokens

from questbench.kernels import _build, _linear
from questbench.kernels._between import Gate, Scale, enter, leave
from questbench.kernels._codes import empty_codes
from questbench.kernels.cpu import CpuOps

LENGTHS = [37, 0, 16, 1]
SHAPES = [(8, 1, 16), (40, 2, 7), (64, 4, 16), (80, 3, 64), (128, 71, 48), (96, 128, 1)]
"""Head dim, query heads per KV head, page size."""


def exact(store: Store) -> Store:
    """The same cache in tensors without a byte to spare, tables without a column to spare."""
    used = -(-max(LENGTHS) // store.page_size)
    table = store.page_table[:, :used].clone()
    return Store(store.k_pages.clone(), store.v_pages.clone(), store.bounds.clone(), table, store.lengths.clone())


def run(ops: CpuOps, dtype: torch.dtype, dim: int, group: int, size: int, by_channel: bool) -> None:
    store = exact(make_store(LENGTHS, heads=2, dim=dim, page_size=size, dtype=dtype, by_channel=by_channel))
    rows, longest = len(LENGTHS), max(LENGTHS)
    q = make_query(store, group)
    pages, counts = random_lists(store, 2 * group, 2)
    mass, visits = torch.zeros((rows, 2, longest)), torch.zeros((rows, 2, longest), dtype=torch.int32)
    options: dict[str, Any] = {"mass": mass, "mass_mode": "sum", "visits": visits, "sinks": torch.zeros(2 * group)}
    ops.attend(q, store.paged, 0.1, **options, prefix_q=q.clone(), prefix=3, softcap=5.0)
    ops.attend(q, store.paged, 0.1, pages=pages.clone(), counts=counts.clone(), **options)
    tokens, held = some_tokens(store, 2, 5)
    lse = torch.zeros(q.shape[:2])
    ops.attend(q, store.paged, 0.1, tokens=tokens.clone(), counts=held.clone(), lse=lse, **options)
    ops.attend(q, store.paged, 0.1, lse=lse)
    codes, ranges = empty_codes(rows, 2, longest, dim, q.device)
    ops.quantize(store.paged, codes, ranges, longest)
    ops.quantize(store.paged, codes, ranges, 3, torch.tensor([3, 0, 1, 1], dtype=torch.int32))
    logits = ops.estimate(q, codes, ranges, store.lengths, size, pages.clone(), counts.clone(), 0.1, 5.0)
    ops.prune(logits, store.lengths, size, pages.clone(), counts.clone(), 0.9)
    for merge in ("none", "max", "sum_softmax"):
        scores = ops.score(q, store.paged, skip_newest=True)
        rule: dict[str, Any] = {"count": 2, "width": 2, "force_newest": True, "merge": merge}
        ops.select(scores, store.lengths, size, **rule, group=group, scale=0.1)
        ops.attend_top(q, store.paged, 0.1, **rule, visits=visits)
    positions = torch.arange(longest, dtype=torch.int32).expand(rows, 2, -1).contiguous()
    ops.evict(store.paged, positions, mass, capacity=longest - 1, sinks=1, recent=1, shared=False)
    new = torch.ones((rows, 2, 1, dim), dtype=dtype)
    full = torch.tensor([1, 0, 0, 1 if size > 1 else 0], dtype=torch.int32)
    ops.append(new, new.clone(), store.paged, full)


def between(dtype: torch.dtype, rows: int, dim: int, width: int, inner: int) -> None:
    """Both ways with heads of ``dim``, of which the first even number of channels below is turned."""
    weights = {(n, m): torch.ones((n, m), dtype=dtype) for n in (3 * dim, width, inner) for m in (width, inner, dim)}
    hidden, norm = torch.ones((rows, width), dtype=dtype), Scale(torch.ones(width), 1e-6)
    cos, heads = torch.ones((rows, 1, dim // 2 * 2), dtype=dtype), Scale(torch.ones(dim), 1e-6)
    out = torch.ones((rows, 3 * dim), dtype=dtype)
    share = {"head_dim": dim, "kv_heads": 1, "q_norm": heads, "k_norm": heads}
    enter(hidden, norm, [(weights[3 * dim, width], torch.ones(3 * dim, dtype=dtype))], out, **share)(cos, cos.clone())
    up = weights[inner, width], torch.ones(inner, dtype=dtype)
    down = weights[width, inner], None
    leave(hidden, (weights[width, dim], None), norm, norm, up, up, Gate(1.6, 0.07), down, norm)(
        torch.ones((rows, dim), dtype=dtype)
    )


def main() -> None:
    print(_build.build_cpu().path, flush=True)  # noqa: T201
    ops = CpuOps()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for dtype in DTYPES:
            for dim, group, size in SHAPES:
                for by_channel in (False, True):
                    run(ops, dtype, dim, group, size, by_channel)
            for rows, inputs, outputs in ((1, 7, 3), (3, 96, 33), (8, 130, 64)):
                weight = torch.ones((outputs, inputs), dtype=dtype)
                _linear.linear(torch.ones((rows, inputs), dtype=dtype), weight, torch.ones(outputs, dtype=dtype))
                between(dtype, rows, max(inputs, 2), inputs, outputs)
    if "--overrun" in sys.argv:
        store = exact(make_store(LENGTHS, heads=2, dim=64, page_size=16, dtype=torch.float32))
        store.page_table[0, 0] = store.k_pages.shape[0]  # one page behind the pool
        ops.attend(make_query(store, 1), store.paged, 0.1)
    print("clean", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
