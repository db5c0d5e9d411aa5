"""One short check per op, wide enough that any planted mistake shows. As a script: runs some against a library.

    python tests/emulator/quick_checks.py LIBRARY OP...

Ends with 0 if the kernels passed, with 3 if the check or the emulator found something wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent / "kernels")]

import emulated  # noqa: E402
import kernel_checks as checks  # noqa: E402
import prune_checks  # noqa: E402
import torch  # noqa: E402
from kernel_cases import check_attend, empty_store, generator, make_query, make_store, random_lists  # noqa: E402

FOUND = 3
HALVES = (torch.float16, torch.bfloat16)
SHAPES = ((1, 128, 16), (4, 64, 16), (8, 256, 8), (2, 64, 64))
"""Group, head size, page size."""


def append(ops: Any) -> None:
    """Prompts and steps over page ends, with bounds in either layout and padded rows."""
    for dtype, by_channel in ((torch.float16, False), (torch.bfloat16, True)):
        store = empty_store(2, 12, heads=2, dim=128, page_size=8, dtype=dtype, by_channel=by_channel)
        for seed, count in enumerate((1, 8, 7, 1, 30)):
            checks.check_append(ops, store, *checks.entries(store, count, seed))
        checks.check_append(ops, store, *checks.entries(store, 9), torch.tensor([9, 4], dtype=torch.int32))
    for held, by_channel in ((7, False), (1, True)):
        checks.check_append_from(ops, held, by_channel)


def score(ops: Any) -> None:
    """Every page of ragged rows, with the newest and without."""
    for at, (group, dim, size) in enumerate(SHAPES):
        lengths = checks.ragged(size, 40 * size + 3)
        store = make_store(lengths, heads=2, dim=dim, page_size=size, dtype=HALVES[at % 2], seed=at)
        for skip_newest in (False, True):
            checks.check_score(ops, store, make_query(store, group), skip_newest)
    lengths, shape = [70 * 8 + 3, 0, 1, 8, 9, 64 * 8 + 1], {"heads": 2, "dim": 128, "page_size": 8, "dtype": HALVES[1]}
    store, plain = make_store(lengths, **shape, by_channel=True), make_store(lengths, **shape)
    checks.check_score(ops, store, make_query(store, 1), True, plain)
    for start in (0, 5):
        checks.check_neighbours(ops, start, 64, HALVES[start % 2])
    for pages, by_channel in ((65, False), (64, True), (65, True)):
        checks.check_table_width(ops, pages, by_channel)


def select(ops: Any) -> None:
    """Ties, special values, forced pages, all pages; more pages than a block has threads."""
    for pages in (1, 33, 300, 2049):
        scores = torch.randn((3, 4, pages), generator=generator(pages))
        scores[1] = (scores[1] * 2).round()
        scores[2, :, ::3] = torch.inf
        scores[2, :, 1::3] = torch.nan
        lengths = torch.tensor([pages * 16, pages * 16 - 15, pages * 8], dtype=torch.int32)
        for at, count in enumerate((1, 2, pages // 2 + 1, pages, pages + 5)):
            options = {"width": count + 3, "force_newest": at % 2 == 0, "merge": ("none", "max")[at % 2], "group": 2}
            checks.check_select(ops, scores, lengths, count, **options)
    checks.check_summed(ops, 4, 300)


def attend(ops: Any) -> None:
    """Dense and lists, many splits, what is left behind, and NaN in a page that only some lists hold."""
    for at, (group, dim, size) in enumerate(SHAPES):
        lengths = checks.ragged(size, 9 * size + 3)
        store = make_store(lengths, heads=2, dim=dim, page_size=size, dtype=HALVES[at % 2], seed=at)
        q = make_query(store, group)
        check_attend(ops, store, q, dim**-0.5, sinks=torch.randn(2 * group, generator=generator(at)))
        for heads in {2, 2 * group}:
            pages, counts = random_lists(store, heads, 6)
            check_attend(ops, store, q, dim**-0.5, pages=pages, counts=counts)
    store = make_store([1300, 5], heads=2, dim=64, page_size=16, dtype=torch.bfloat16)
    check_attend(ops, store, make_query(store, 4), 0.125, softcap=5.0)
    # Lists of several splits, whose last block merges what all of them wrote.
    store = make_store([900, 1100, 300], heads=1, dim=64, page_size=16, dtype=torch.float16)
    check_attend(ops, store, make_query(store, 8), 0.125)
    store = make_store([1100, 0, 1, 16, 17], heads=2, dim=64, page_size=16, dtype=torch.float16)
    q, sinks = make_query(store, 4), torch.randn(8, generator=generator(4))
    for listed in ("dense", "query heads", "tokens of kv heads"):
        options = checks.lists(store, listed)
        checks.check_visits(ops, store, q, **options)
        checks.check_mass(ops, store, q, "sum", **options, sinks=sinks)
        checks.check_lse(ops, store, q, 0.125, **options, sinks=sinks)


def evict(ops: Any) -> None:
    """Every rule, with equal masses and without mass."""
    for seed, (sinks, recent, shared) in enumerate(((0, 0, False), (4, 9, True), (4, 0, False), (20, 30, True))):
        store = make_store(checks.HELD, heads=2, dim=64, page_size=8, dtype=HALVES[seed % 2])
        positions = checks.shuffled_positions(shared, seed)
        for weights in (checks.quarters(seed), None):
            checks.check_evict(ops, store, positions, weights, sinks=sinks, recent=recent, shared=shared)


def quantize(ops: Any) -> None:
    """The newest entries and all of them, over page ends, and entries that are no numbers."""
    for at, (_, dim, size) in enumerate(SHAPES):
        store = make_store(checks.ragged(size, 5 * size + 3), heads=2, dim=dim, page_size=size, dtype=HALVES[at % 2])
        store.k_pages[int(store.page_table[0, 0]), 0, 0, dim - 1] = torch.nan
        prune_checks.check_quantize(ops, store)


def estimate(ops: Any) -> None:
    """Lists by KV head and by query head, with several tiles of query heads, and a last page that is half full."""
    for at, (group, dim, size) in enumerate((*SHAPES, (12, 64, 16))):
        store = make_store(checks.ragged(size, 5 * size + 3), heads=2, dim=dim, page_size=size, dtype=HALVES[at % 2])
        for heads in {2, 2 * group}:
            lists = random_lists(store, heads, 4)
            prune_checks.check_estimate(ops, store, make_query(store, group), lists, softcap=5.0 * (at % 2))


def prune(ops: Any) -> None:
    """Random logits, equal ones and undefined ones; at last more entries than a block has threads."""
    cases = (
        (2, 1, 16, [70, 0, 3], "random"),
        (2, 2, 8, [30], "rounded"),
        (2, 4, 8, [30, 3], "undefined"),
        (2, 1, 16, [40], "equal"),
        (1, 1, 16, [600], "rounded"),
    )
    for at, (kv_heads, group, size, lengths, kind) in enumerate(cases):
        store = make_store(lengths, heads=kv_heads, dim=64, page_size=size, dtype=HALVES[at % 2])
        for heads in {kv_heads, kv_heads * group}:
            lists = random_lists(store, heads, -(-max(lengths) // size))
            shape = (len(lengths), kv_heads * group, lists[0].shape[2] * size)
            logits = 3 * torch.randn(shape, generator=generator(at)) * (kind != "equal")
            if kind != "random":
                logits = logits.round()
            if kind == "undefined":
                logits[:, :, 1::5] = torch.nan
            prune_checks.check_prune(ops, store, logits, lists, 0.9 if kind == "random" else 0.6)


CHECKS: dict[str, Callable[[Any], None]] = {
    "append": append,
    "score": score,
    "select": select,
    "attend": attend,
    "evict": evict,
    "quantize": quantize,
    "estimate": estimate,
    "prune": prune,
}


def main(library: str, *names: str) -> int:
    """See the module's docstring."""
    torch.set_num_threads(1)
    ops = emulated.watched(emulated.load(Path(library)), seeds=range(7))
    try:
        for name in names:
            CHECKS[name](ops)
    except (AssertionError, RuntimeError) as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        return FOUND
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
