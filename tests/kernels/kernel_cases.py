"""Random caches, and error budgets derived from the arithmetic the ops promise: fp32 accumulation, one final rounding.

``u = 2**-24`` is the unit roundoff of fp32. A product of two vectors of length D, summed in any order, is off by at
most ``D * u * sum |a_d b_d|``. Everything else follows from that; magnitudes are computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from questbench.kernels._bounds import empty_bounds
from questbench.kernels._paged import Paged
from questbench.kernels.reference import ReferenceOps, _merge

REFERENCE = ReferenceOps()
UNIT = 2.0**-24
ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SMALLEST = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}
DTYPES = list(ROUNDOFF)
NOWHERE = 2**30
"""Physical page of table entries that no op may follow."""


@dataclass
class Store:
    """A filled cache. Slots and pages that hold nothing are NaN: reading one shows."""

    k_pages: Tensor
    v_pages: Tensor
    bounds: Tensor
    page_table: Tensor
    lengths: Tensor

    @property
    def page_size(self) -> int:
        return self.k_pages.shape[2]

    @property
    def paged(self) -> Paged:
        """What the ops are given, bounds included."""
        return Paged(self.k_pages, self.v_pages, self.page_table, self.lengths, self.bounds)

    def wide(self) -> Store:
        """The same values in float64."""
        return Store(
            self.k_pages.double(), self.v_pages.double(), self.bounds.double(), self.page_table, self.lengths.clone()
        )

    def clone(self) -> Store:
        """A copy that shares nothing but the page table."""
        return Store(
            self.k_pages.clone(), self.v_pages.clone(), self.bounds.clone(), self.page_table, self.lengths.clone()
        )

    def entries(self, stored: Tensor, row: int) -> Tensor:
        """``[Hk, length, D]`` of ``k_pages`` or ``v_pages``."""
        length = int(self.lengths[row])
        used = self.page_table[row, : -(-length // self.page_size)].long()
        return stored[used].transpose(0, 1).flatten(1, 2)[:, :length]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(rows: int, pages: int, seed: int, extra: int = 3) -> Tensor:
    """Shuffled physical pages in a view of a wider table, so that rows are strided."""
    order = torch.randperm(rows * pages, generator=generator(seed)).to(torch.int32).view(rows, pages)
    wider = torch.full((rows, pages + extra), NOWHERE, dtype=torch.int32)
    wider[:, :pages] = order
    return wider[:, :pages]


def empty_store(
    rows: int,
    pages: int,
    *,
    heads: int,
    dim: int,
    page_size: int,
    dtype: torch.dtype,
    seed: int = 0,
    by_channel: bool = False,
) -> Store:
    """A cache without entries; every table entry names a page of its own."""
    shape = (rows * pages, heads, page_size, dim)
    k_pages, v_pages = torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype)
    bounds = empty_bounds(rows * pages, heads, dim, dtype, k_pages.device, by_channel=by_channel).fill_(torch.nan)
    return Store(k_pages, v_pages, bounds, table(rows, pages, seed), torch.zeros(rows, dtype=torch.int32))


def make_store(
    lengths: list[int],
    *,
    heads: int,
    dim: int,
    page_size: int,
    dtype: torch.dtype,
    seed: int = 0,
    by_channel: bool = False,
) -> Store:
    """A cache with the given lengths; table entries past a row's last page lead nowhere."""
    pages = -(-max(lengths) // page_size) + 2
    shape = {"heads": heads, "dim": dim, "page_size": page_size, "dtype": dtype}
    store = empty_store(len(lengths), pages, **shape, seed=seed, by_channel=by_channel)
    source = generator(seed)
    for row, length in enumerate(lengths):
        entries = torch.randn((2, 1, heads, length, dim), generator=source).to(dtype)
        one = store.paged._replace(table=store.page_table[row : row + 1], lengths=store.lengths[row : row + 1])
        REFERENCE.append(entries[0], entries[1], one)
        store.page_table[row, -(-length // page_size) :] = NOWHERE
    return store


def make_query(store: Store, group: int, seed: int = 1) -> Tensor:
    rows, heads, dim = store.lengths.shape[0], store.k_pages.shape[1], store.k_pages.shape[3]
    return torch.randn((rows, heads * group, dim), generator=generator(seed)).to(store.k_pages.dtype)


def random_lists(store: Store, heads: int, count: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Lists of pages as ``select`` returns them, different for each of ``heads``."""
    source = generator(seed)
    rows = store.lengths.shape[0]
    pages = torch.full((rows, heads, count + 1), -1, dtype=torch.int32)
    counts = torch.zeros((rows, heads), dtype=torch.int32)
    for row in range(rows):
        total = -(-int(store.lengths[row]) // store.page_size)
        for head in range(heads):
            taken = min(total, count)
            chosen = torch.randperm(total, generator=source)[:taken].sort().values
            pages[row, head, :taken] = chosen.to(torch.int32)
            counts[row, head] = taken
    return pages, counts


def widest_product(store: Store, q: Tensor) -> Tensor:
    """``[B, Hq]``: the largest ``sum_d |q_d k_d|`` over the entries of each row, float64."""
    rows, query_heads, _ = q.shape
    out = torch.zeros((rows, query_heads), dtype=torch.float64)
    for row in range(rows):
        if int(store.lengths[row]):
            keys = store.entries(store.k_pages, row).double().abs()
            keys = keys.repeat_interleave(query_heads // keys.shape[0], dim=0)
            out[row] = torch.einsum("hd,htd->ht", q[row].double().abs(), keys).amax(1)
    return out


def logit_error(store: Store, q: Tensor, scale: float, softcap: float) -> Tensor:
    """``[B, Hq]``: how far a logit, less the largest one, may be off.

    D roundings of the product, 4 of scaling and rounding the scale, 2 of the subtraction (both terms are at most the
    widest product), and a few of ``softcap * tanh``, which does not steepen anything.
    """
    dim = q.shape[-1]
    return UNIT * ((dim + 6) * scale * widest_product(store, q) + 8 * softcap)


def attend_budget(store: Store, q: Tensor, scale: float, want: Tensor, **options: Any) -> Tensor:
    """``[B, Hq, D]``: how far the output may be off, given its float64 value ``want``.

    A logit off by e scales a weight by exp(e), and the sum of the weights likewise: 2 e relative. n weights are
    summed, and n products with V: n roundings each, and a dozen for the exponentials and the merge of partial sums.
    """
    wide = store.wide()
    options = {name: value for name, value in options.items() if name not in ("mass", "mass_mode", "visits")}
    if (prefix_q := options.get("prefix_q")) is not None:
        options["prefix_q"] = prefix_q.double()
    magnitude = REFERENCE.attend(q.double(), wide.paged._replace(v=wide.v_pages.abs()), scale, **options)
    widest = q if prefix_q is None else torch.maximum(q.abs(), prefix_q.abs())
    relative = weight_error(store, widest, scale, options.get("softcap", 0.0))
    # bf16: probabilities may be rounded to it before they meet the values, as tensor cores take them.
    rounded = ROUNDOFF[q.dtype] if q.dtype == torch.bfloat16 else 0.0
    return (relative[..., None] + rounded) * magnitude + ROUNDOFF[q.dtype] * want.abs() * (1 + UNIT) + SMALLEST[q.dtype]


def weight_error(store: Store, q: Tensor, scale: float, softcap: float = 0.0) -> Tensor:
    """``[B, Hq]``: relative error of probabilities, and of sums of them."""
    summed = 2 * store.lengths.double()[:, None] + 24
    return torch.expm1(2 * logit_error(store, q, scale, softcap)) + summed * UNIT


def check_attend(ops: Any, store: Store, q: Tensor, scale: float, **options: Any) -> Tensor:
    """One call within its budget; returns the output."""
    wide = dict(options)
    if wide.get("prefix_q") is not None:
        wide["prefix_q"] = wide["prefix_q"].double()
    copy = store.wide()
    want = REFERENCE.attend(q.double(), copy.paged, scale, **wide)
    got = ops.attend(q, store.paged, scale, **options)
    assert got.dtype == q.dtype and got.shape == q.shape
    budget = attend_budget(store, q, scale, want, **options)
    assert ((got.double() - want).abs() <= budget).all(), ((got.double() - want).abs() / budget).max()
    return got


def valid_lists(
    scores: Tensor,
    lengths: Tensor,
    size: int,
    lists: tuple[Tensor, Tensor],
    *,
    width: int,
    force_newest: bool,
    merge: str,
    group: int,
    scale: float,
) -> bool:
    """Whether lists merged by ``sum_softmax`` hold the best pages, up to the rounding of what they are ranked by."""
    pages, counts = lists
    heads = scores.shape[1] // group
    for row in range(scores.shape[0]):
        total = -(-int(lengths[row]) // size)
        scored = total - int(force_newest)
        known = scores[row, :, : max(scored, 0)].double()
        for head in range(heads):
            taken = int(counts[row, head])
            chosen = pages[row, head, :taken].long()
            if not bool((pages[row, head, taken:] == -1).all()) or not bool((chosen.diff() > 0).all()):
                return False
            if taken and force_newest:
                if int(chosen[-1]) != total - 1:
                    return False
                chosen = chosen[:-1]
            own = known[head * group : (head + 1) * group]
            if len(chosen) and not best_of_group(own, chosen, scale):
                return False
    return True


def best_of_group(scores: Tensor, chosen: Tensor, scale: float) -> bool:
    """Whether ``chosen`` are the best pages of one group's ``scores`` ``[group, pages]``."""
    group, pages = scores.shape
    merged = _merge(scores, "sum_softmax", group, scale)[0]
    finite = scores[scores.isfinite()].abs()
    slack = UNIT * (4 * scale * float(finite.max() if len(finite) else 0.0) + pages + group + 32)
    inside = torch.zeros(pages, dtype=torch.bool)
    inside[chosen] = True
    # NaN first, -inf last, both ties that go to the lower page; what is between, up to rounding.
    for rank in (merged.isnan(), merged == -torch.inf):
        members = inside[rank]
        if bool((members[1:] & ~members[:-1]).any()):
            return False
    order = torch.where(merged.isnan(), torch.inf, merged)
    if inside.all():
        return True
    least, best = float(order[inside].min()), float(order[~inside].max())
    return least >= best or least + 2 * slack >= best
