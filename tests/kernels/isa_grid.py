"""A small grid over every op with the instruction set that ``QUESTBENCH_ISA`` names; run as a script by test_isa.

``--few`` takes the first shapes only: the library for this processor has the tests of ``tests/conformance``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import torch
from kernel_cases import DTYPES, REFERENCE, check_attend, generator, make_query, make_store, random_lists
from kernel_checks import SIZE, check_append, check_lse, check_score, check_select, entries, some_tokens
from prune_checks import check_estimate, check_prune, check_quantize
from test_between import GATES, test_activations, test_heads_are_normalised_and_turned, test_norms
from test_linear import test_error_budget

from questbench import kernels
from questbench.kernels._ops import Ops

SHAPES = (
    (80, 4, 4),
    (64, 1, 16),
    (128, 7, 32),
    (16, 2, 8),
    (256, 8, 16),
    (96, 4, 16),
    (40, 3, 5),
    (254, 2, 7),
)
"""Head dim, query heads per KV head, page size."""


def main(shapes: Sequence[tuple[int, int, int]]) -> None:
    """See the module's docstring."""
    torch.set_num_threads(1)
    ops = kernels.load("cpu")
    for at, dtype in enumerate(DTYPES):
        for dim, group, size in shapes:
            store = make_store([4 * size + 1, 0, 1, 1030], heads=2, dim=dim, page_size=size, dtype=dtype, seed=dim)
            q = make_query(store, group)
            check_score(ops, store, q, skip_newest=False)
            sinks = torch.randn(2 * group, generator=generator(at))
            check_attend(ops, store, q, dim**-0.5, softcap=5.0, sinks=sinks)
            pages, counts = random_lists(store, 2, 5)
            check_attend(ops, store, q, dim**-0.5, pages=pages, counts=counts)
            tokens, counts = some_tokens(store, 2, 40)
            check_attend(ops, store, q, dim**-0.5, tokens=tokens, counts=counts, sinks=sinks)
            check_lse(ops, store, q, dim**-0.5, tokens=tokens, counts=counts, sinks=sinks)
            lists = random_lists(store, 2, 5)
            check_quantize(ops, store)
            check_prune(ops, store, check_estimate(ops, store, q, lists), lists, 0.85)
            choice = {"count": 5, "width": 5, "force_newest": True, "merge": "sum_softmax"}
            got, want = (top(q, store.paged, 0.125, **choice) for top in (ops.attend_top, partial(Ops.attend_top, ops)))
            assert torch.equal(got, want)
        held = make_store([20, 9], heads=2, dim=64, page_size=16, dtype=dtype)
        check_append(ops, held, *entries(held, 3))
    # The specification and the kernels must meet here too: subnormal halves, halves that overflow, NaN.
    odd = torch.tensor([6e-8, 1e-5, 65504.0, -6e-5, torch.nan, torch.inf, -0.0, 1.0]).repeat(8)
    for dtype in DTYPES:
        store = make_store([1], heads=1, dim=64, page_size=16, dtype=dtype)
        store.v_pages[int(store.page_table[0, 0]), 0, 0] = odd.to(dtype)
        q = make_query(store, 1)
        got, want = ops.attend(q, store.paged, 0.1), REFERENCE.attend(q, store.paged, 0.1)
        assert torch.allclose(got, want, rtol=0, atol=0, equal_nan=True)
    for dtype in DTYPES:
        test_error_budget(dtype, 3)
        test_norms(dtype, 130)
        test_heads_are_normalised_and_turned(dtype, 40, 20, True)
        for kind in GATES:
            test_activations(dtype, kind)
    scores = (torch.randn((2, 4, 300), generator=generator(3)) * 2).round()
    scores[0, 0, ::7] = torch.nan
    lengths = torch.tensor([300 * SIZE, 150 * SIZE - 1], dtype=torch.int32)
    for merge in ("none", "max"):
        check_select(ops, scores, lengths, 40, width=40, force_newest=True, merge=merge, group=2)


if __name__ == "__main__":
    main(SHAPES[:2] if "--few" in sys.argv else SHAPES)
