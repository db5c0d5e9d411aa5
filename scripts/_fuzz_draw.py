"""What the random calls of ``kernel_fuzz.py`` are drawn from, and when two answers agree."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "kernels"))

from kernel_cases import DTYPES, Store, make_store

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
    wide = got.double()
    near = (wide - want).abs() <= budget
    alike = same(wide, want) | same(wide, narrow.double())
    return bool(torch.where(want.isfinite(), near, alike).all())


def same(a: Tensor, b: Tensor) -> Tensor:
    """Element by element, where NaN is NaN."""
    return (a == b) | (a.isnan() & b.isnan())


def equal(a: Tensor, b: Tensor) -> bool:
    """Shapes too."""
    return a.shape == b.shape and bool(same(a, b).all())


def finite(tensor: Tensor) -> Tensor:
    """Zeros for what is not."""
    return torch.nan_to_num(tensor, 0.0, 0.0, 0.0)


def some_lists(case: Case) -> dict[str, Tensor]:
    """What ``attend`` reads: nothing (dense), or lists of pages or of slots, some of them empty."""
    kind, named = (
        case.choose.choice(["dense", "kv heads", "query heads"]),
        case.choose.choice(["pages", "pages", "tokens"]),
    )
    if kind == "dense":
        return {}
    listed, counts = drawn_lists(case, case.heads * (1 if kind == "kv heads" else case.group), named == "tokens")
    return {named: listed, "counts": counts}


def drawn_lists(case: Case, heads: int, of_slots: bool = False) -> tuple[Tensor, Tensor]:
    """Lists of pages that exist, or of slots, for each of so many heads, and how long they are."""
    choose, store, most = case.choose, case.store, case.choose.randint(1, 30)
    rows = store.lengths.shape[0]
    listed = torch.full((rows, heads, most), -1, dtype=torch.int32)
    counts = torch.zeros((rows, heads), dtype=torch.int32)
    for row, length in enumerate(store.lengths.tolist()):
        total = length if of_slots else -(-length // store.page_size)
        for head in range(heads):
            taken = choose.choice([0, min(total, most), choose.randint(0, min(total, most))])
            listed[row, head, :taken] = torch.tensor(sorted(choose.sample(range(total), taken)), dtype=torch.int32)
            counts[row, head] = taken
    return listed, counts
