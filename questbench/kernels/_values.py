"""What tensors hold, checked before a compiled op follows it: ids inside the pool, lengths within the table, lists.

Only with ``QUESTBENCH_CHECK=1``, as in the tests: it reads every length and page id, and on a GPU it waits for them.
What tensors are (shapes, types, strides, devices) is checked in every call, by the binding (``contract.h``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from questbench.kernels._bounds import LANES, is_by_channel
from questbench.kernels._operators import Operator

enabled = os.environ.get("QUESTBENCH_CHECK") == "1"
"""Whether values are checked."""


def checker(op: Operator) -> Callable[[Sequence[Any]], None]:
    """What refuses arguments of an operator whose values break its contract: a ValueError that names the tensor."""
    values = op.picker(_CHECKS.get(op.name, _nothing))

    def check(given: Sequence[Any]) -> None:
        on_device = torch.cuda.is_initialized() and any(isinstance(one, Tensor) and one.is_cuda for one in given)
        if on_device and torch.cuda.is_current_stream_capturing():
            return  # nothing can be read back while a graph is captured
        try:
            values(given)
        except (IndexError, RuntimeError, TypeError):
            return  # shapes do not fit each other: the binding says which, and why

    return check


# One check per op: it is given the operator's arguments that its parameters are named after.


def _nothing() -> None:
    """The check of an op whose tensors may hold anything."""


def _append(k: Tensor, k_pages: Tensor, page_table: Tensor, lengths: Tensor, new: Tensor | None) -> None:
    incoming, size = k.shape[2], k_pages.shape[2]
    if new is not None:
        _within("new", new, 0, incoming)
    after = lengths + (incoming if new is None else new)
    _lengths(lengths, page_table, size)
    _lengths(after, page_table, size, "lengths with the new entries")
    _ids(page_table, after.long(), size, k_pages.shape[0])


def _score(bounds: Tensor, page_table: Tensor, lengths: Tensor, page_size: int, skip_newest: bool) -> None:
    size = page_size
    _lengths(lengths, page_table, size)
    pool = bounds.shape[0] * (LANES if is_by_channel(bounds) else 1)
    scored = lengths.long() - 1 if skip_newest else lengths.long()
    _ids(page_table, scored // size * size if skip_newest else scored, size, pool)


def _select(scores: Tensor, lengths: Tensor, page_size: int, row_counts: Tensor | None, width: int) -> None:
    size = page_size
    _lengths(lengths, scores[0], size)
    if row_counts is not None:
        _within("count", row_counts, 0, None)
        _within("count", torch.minimum(row_counts, _pages(lengths, size)), 0, width)


def _attend(
    k_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    pages: Tensor | None,
    tokens: Tensor | None,
    counts: Tensor | None,
    mass: Tensor | None,
    visits: Tensor | None,
) -> None:
    size = _stored(k_pages, page_table, lengths)
    _slots(lengths, mass=mass, visits=visits)
    if pages is not None and counts is not None:
        _listed("page", pages, counts, _pages(lengths, size))
    if tokens is not None and counts is not None:
        _listed("token", tokens, counts, lengths)


def _attend_top(
    k_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    row_counts: Tensor | None,
    width: int,
    visits: Tensor | None,
) -> None:
    size = _stored(k_pages, page_table, lengths)
    _slots(lengths, visits=visits)
    _select(page_table[:, None], lengths, size, row_counts, width)


def _evict(
    k_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    positions: Tensor,
    mass: Tensor | None,
    capacity: int,
    sinks: int,
    recent: int,
) -> None:
    size = k_pages.shape[2]
    _lengths(lengths, page_table, size)
    _slots(lengths, positions=positions, mass=mass)
    full = (lengths == capacity + 1).nonzero()[:, 0]
    if full.numel() == 0:
        return
    _ids(page_table[full], lengths[full].long(), size, k_pages.shape[0])
    held = positions[full, :, : capacity + 1]
    candidates = (held >= sinks) & (held <= held.amax(2, keepdim=True) - recent)
    if not candidates.any(2).all():
        raise ValueError("evict: all entries of a row are sinks or recent, none can be dropped")


def _quantize(
    k_pages: Tensor, page_table: Tensor, lengths: Tensor, codes: Tensor, incoming: int, new: Tensor | None
) -> None:
    if new is not None:
        _within("new", new, 0, incoming)
    _stored(k_pages, page_table, lengths)
    _slots(lengths, codes=codes)


def _estimate(codes: Tensor, lengths: Tensor, page_size: int, pages: Tensor, counts: Tensor) -> None:
    _within("lengths", lengths, 0, None)
    _slots(lengths, codes=codes)
    _listed("page", pages, counts, _pages(lengths, page_size))


def _prune(lengths: Tensor, page_size: int, pages: Tensor, counts: Tensor) -> None:
    _within("lengths", lengths, 0, None)
    _listed("page", pages, counts, _pages(lengths, page_size))


_CHECKS: dict[str, Callable[..., None]] = {
    "append": _append,
    "score": _score,
    "select": _select,
    "attend": _attend,
    "attend_top": _attend_top,
    "evict": _evict,
    "quantize": _quantize,
    "estimate": _estimate,
    "prune": _prune,
}


def _stored(k_pages: Tensor, page_table: Tensor, lengths: Tensor) -> int:
    """All entries of all rows are in the pool; the size of its pages."""
    size = k_pages.shape[2]
    _lengths(lengths, page_table, size)
    _ids(page_table, lengths.long(), size, k_pages.shape[0])
    return size


def _listed(what: str, lists: Tensor, counts: Tensor, held: Tensor) -> None:
    """Lists name what their rows have, ``held[b]`` of it, in ascending order."""
    _within("counts", counts, 0, lists.shape[2])
    listed = torch.arange(lists.shape[2], device=lists.device) < counts[:, :, None]
    if (listed & ((lists < 0) | (lists >= held[:, None, None]))).any():
        raise ValueError(f"{what}s lists a {what} that its row does not have")
    if (listed[:, :, 1:] & (lists[:, :, 1:] <= lists[:, :, :-1])).any():
        raise ValueError(f"{what}s is not ascending")


def _pages(lengths: Tensor, size: int) -> Tensor:
    return (lengths + (size - 1)) // size


def _within(name: str, values: Tensor, least: int, most: int | None) -> None:
    if values.numel() == 0:
        return
    low, high = map(int, values.aminmax())
    if low < least or (most is not None and high > most):
        wanted = f"{least} to {most}" if most is not None else f"{least} or more"
        raise ValueError(f"{name} holds {low if low < least else high}, not {wanted}")


def _lengths(lengths: Tensor, table: Tensor, size: int, name: str = "lengths") -> None:
    if size > 0:  # else the binding says so
        _within(name, lengths, 0, table.shape[1] * size)


def _slots(lengths: Tensor, **per_slot: Tensor | None) -> None:
    """Tensors of one value per slot reach as far as the longest row."""
    longest = int(lengths.max()) if lengths.numel() else 0
    for name, given in per_slot.items():
        if given is not None and given.shape[2] < longest:
            raise ValueError(f"{name} has {given.shape[2]} slots for a row of {longest} entries")


def _ids(table: Tensor, lengths: Tensor, size: int, pool: int) -> None:
    """The physical pages of the first ``lengths`` entries are in the pool."""
    held = torch.arange(table.shape[1], device=table.device) < _pages(lengths, size)[:, None]
    ids = table * held  # page 0 in place of what no entry needs; in a pool without pages a closer look decides
    if ids.numel() == 0:
        return
    low, high = map(int, ids.aminmax())
    if low < 0 or (high >= pool and bool((table[held] >= pool).any())):
        raise ValueError(f"page_table names a page outside of the pool of {pool}")
