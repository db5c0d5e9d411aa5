"""Compiled backends: the ops of a library behind torch operators. One table serves every device.

The operators are defined through ``torch.library.Library``, with fakes and mutation in their schemas, so that
torch.compile sees one graph and CUDA graphs capture them. Eager calls go straight to the function behind the operator:
a decode step lasts a fraction of a millisecond, and every microsecond of a call counts.

Shapes, types, strides and devices are checked by the binding (``contract.h``), so that what stands here lets tensors of
any rank pass; what tensors hold is checked by ``_values.py``, on request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from questbench.kernels import _values
from questbench.kernels._ops import MassMode, Merge, Ops

_MERGES = {"none": 0, "sum_softmax": 1, "max": 2}
_MASS_MODES = {"none": 0, "last": 1, "sum": 2}
_STORED = "Tensor k_pages, Tensor v_pages"
_SCHEMAS = {
    "append": "(Tensor k, Tensor v, Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor(c!)? bounds, Tensor page_table, "
    "Tensor(d!) lengths, Tensor? new) -> ()",
    "score": "(Tensor q, Tensor bounds, Tensor page_table, Tensor lengths, int page_size, bool skip_newest) -> Tensor",
    "select": "(Tensor scores, Tensor lengths, int page_size, int count, Tensor? row_counts, int width, "
    "bool force_newest, int merge, int group, float scale) -> (Tensor, Tensor)",
    "attend": f"(Tensor q, {_STORED}, Tensor page_table, Tensor lengths, float scale, Tensor? pages, Tensor? counts, "
    "float softcap, Tensor? sinks, Tensor? prefix_q, int prefix, Tensor(a!)? mass, bool add_mass, "
    "Tensor(b!)? visits) -> Tensor",
    "attend_top": f"(Tensor q, {_STORED}, Tensor bounds, Tensor page_table, Tensor lengths, float scale, int count, "
    "Tensor? row_counts, int width, bool force_newest, int merge, float softcap, Tensor? sinks, "
    "Tensor(a!)? visits) -> Tensor",
    "evict": "(Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor page_table, Tensor(c!) lengths, Tensor(d!) positions, "
    "Tensor(e!)? mass, int capacity, int sinks, int recent, bool shared) -> ()",
}
Function = Callable[..., Any]


class Library(Protocol):
    """A compiled library and what it is told beside the op's own arguments."""

    def load(self) -> Any:
        """The module whose functions carry the ops' names; compiles on first use."""
        ...

    def extra(self, op: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The last arguments of a call, given the op's own: threads on a CPU, room to work in on a GPU."""
        ...


def functions(library: Library) -> dict[str, Function]:
    """The ops of a library as functions of the operators' arguments, in their order."""

    def append(k: Tensor, v: Tensor, *rest: Any) -> None:
        _values.check("append", k, v, *rest)
        library.load().append(_rows(k), _rows(v), *rest, *library.extra("append", (k, v, *rest)))

    def score(q: Tensor, bounds: Tensor, table: Tensor, lengths: Tensor, size: int, skip_newest: bool) -> Tensor:
        scores = _new_scores(q, table)
        extra = library.extra("score", (q,))
        _values.check("score", q, bounds, table, lengths, size, skip_newest)
        library.load().score(q.contiguous(), bounds, table, lengths, size, skip_newest, scores, *extra)
        return scores

    def select(
        scores: Tensor,
        lengths: Tensor,
        size: int,
        count: int,
        row_counts: Tensor | None,
        width: int,
        *rule: Any,
    ) -> tuple[Tensor, Tensor]:
        _, merge, group, _ = rule
        pages, counts = _new_lists(scores, width, merge, group)
        extra = library.extra("select", (scores,))
        _values.check("select", scores, lengths, size, count, row_counts, width)
        library.load().select(scores.contiguous(), lengths, size, count, row_counts, *rule, pages, counts, *extra)
        return pages, counts

    def attend(q: Tensor, *rest: Any) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        extra = library.extra("attend", (q, *rest))
        _values.check("attend", q, *rest)
        library.load().attend(q.contiguous(), *_contiguous_prefix(rest), out, *extra)
        return out

    def attend_top(q: Tensor, *rest: Any) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        _values.check("attend_top", q, *rest)
        library.load().attend_top(q.contiguous(), *rest, out, *library.extra("attend_top", (q, *rest)))
        return out

    def evict(k_pages: Tensor, *rest: Any) -> None:
        _values.check("evict", k_pages, *rest)
        library.load().evict(k_pages, *rest, *library.extra("evict", (k_pages, *rest)))

    return {
        "append": append,
        "score": score,
        "select": select,
        "attend": attend,
        "attend_top": attend_top,
        "evict": evict,
    }


def register(namespace: str, key: str, eager: dict[str, Function]) -> torch.library.Library:
    """Make the functions operators of ``namespace`` for the dispatch key ``key``; keep the result alive."""
    library = torch.library.Library(namespace, "DEF")
    for name, function in eager.items():
        library.define(name + _SCHEMAS[name])
        library.impl(name, function, key)
        torch.library.register_fake(f"{namespace}::{name}", _FAKES[name], lib=library)
    return library


class NativeOps(Ops):
    """The five ops and their fusion in a compiled library.

    Args:
        eager: as :func:`functions` gives them.
        namespace: where they are registered as operators; ``None`` where they are not.
    """

    def __init__(self, eager: dict[str, Function], namespace: str | None = None) -> None:
        self._eager, self._namespace = eager, namespace

    def _op(self, name: str) -> Function:
        """The registered operator where a graph is traced, else the function behind it: a third of a call less."""
        if self._namespace is not None and torch.compiler.is_compiling():
            operator: Function = getattr(getattr(torch.ops, self._namespace), name)
            return operator
        return self._eager[name]

    def append(
        self,
        k: Tensor,
        v: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        bounds: Tensor | None,
        page_table: Tensor,
        lengths: Tensor,
        new: Tensor | None = None,
    ) -> None:
        """See :meth:`Ops.append`."""
        self._op("append")(k, v, k_pages, v_pages, bounds, page_table, lengths, new)

    def score(
        self, q: Tensor, bounds: Tensor, page_table: Tensor, lengths: Tensor, page_size: int, *, skip_newest: bool
    ) -> Tensor:
        """See :meth:`Ops.score`."""
        out: Tensor = self._op("score")(q, bounds, page_table, lengths, page_size, skip_newest)
        return out

    def select(
        self,
        scores: Tensor,
        lengths: Tensor,
        page_size: int,
        count: int | Tensor,
        *,
        width: int,
        force_newest: bool,
        merge: Merge = "none",
        group: int = 1,
        scale: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Ops.select`."""
        number, rows = _split(count)
        lists: tuple[Tensor, Tensor] = self._op("select")(
            scores, lengths, page_size, number, rows, width, force_newest, _code(_MERGES, merge, "merge"), group, scale
        )
        return lists

    def attend(
        self,
        q: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        page_table: Tensor,
        lengths: Tensor,
        scale: float,
        *,
        pages: Tensor | None = None,
        counts: Tensor | None = None,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        prefix_q: Tensor | None = None,
        prefix: int = 0,
        mass: Tensor | None = None,
        mass_mode: MassMode = "none",
        visits: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Ops.attend`."""
        stored = k_pages, v_pages, page_table, lengths, scale
        mode = _code(_MASS_MODES, mass_mode, "mass_mode")
        weighed = mass if mode else None, mode == _MASS_MODES["sum"]
        out: Tensor = self._op("attend")(q, *stored, pages, counts, softcap, sinks, prefix_q, prefix, *weighed, visits)
        return out

    def attend_top(
        self,
        q: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        bounds: Tensor,
        page_table: Tensor,
        lengths: Tensor,
        scale: float,
        *,
        count: int | Tensor,
        width: int,
        force_newest: bool,
        merge: Merge,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        visits: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Ops.attend_top`: one parallel region instead of three."""
        number, rows = _split(count)
        stored = k_pages, v_pages, bounds, page_table, lengths, scale
        out: Tensor = self._op("attend_top")(
            q, *stored, number, rows, width, force_newest, _code(_MERGES, merge, "merge"), softcap, sinks, visits
        )
        return out

    def evict(
        self,
        k_pages: Tensor,
        v_pages: Tensor,
        page_table: Tensor,
        lengths: Tensor,
        positions: Tensor,
        mass: Tensor | None,
        *,
        capacity: int,
        sinks: int,
        recent: int,
        shared: bool,
    ) -> None:
        """See :meth:`Ops.evict`."""
        self._op("evict")(k_pages, v_pages, page_table, lengths, positions, mass, capacity, sinks, recent, shared)


def _new_scores(q: Tensor, page_table: Tensor) -> Tensor:
    return torch.empty((*q.shape[:2], *page_table.shape[1:2]), dtype=torch.float32, device=q.device)


def _new_lists(scores: Tensor, width: int, merge: int, group: int) -> tuple[Tensor, Tensor]:
    rows, heads = scores.shape[:1], scores.shape[1:2]
    lists = [number // (1 if merge == 0 else max(group, 1)) for number in heads]
    pages = torch.empty((*rows, *lists, max(width, 0)), dtype=torch.int32, device=scores.device)
    return pages, torch.empty((*rows, *lists), dtype=torch.int32, device=scores.device)


def _contiguous_prefix(rest: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of ``attend`` behind ``q``, the one more query among them contiguous."""
    prefix_q = rest[_PREFIX_Q]
    if prefix_q is None or prefix_q.is_contiguous():
        return rest
    return *rest[:_PREFIX_Q], prefix_q.contiguous(), *rest[_PREFIX_Q + 1 :]


_PREFIX_Q = 9


def _split(count: int | Tensor) -> tuple[int, Tensor | None]:
    """One number for all rows, or one per row."""
    return (count, None) if isinstance(count, int) else (0, count)


def _code(codes: dict[str, int], word: str, what: str) -> int:
    if word not in codes:
        raise ValueError(f"{what} '{word}' is not one of {', '.join(codes)}")
    return codes[word]


def _rows(entries: Tensor) -> Tensor:
    return entries if entries.dim() == 0 or entries.stride(-1) == 1 else entries.contiguous()


def _nothing(*_: object) -> None:
    """The fake of an operator that only writes into its arguments."""


_FAKES: dict[str, Function] = {
    "append": _nothing,
    "evict": _nothing,
    "score": lambda q, bounds, page_table, *_: _new_scores(q, page_table),
    "select": lambda scores, lengths, size, count, rows, width, newest, merge, group, scale: _new_lists(
        scores, width, merge, group
    ),
    "attend": lambda q, *_: torch.empty(q.shape, dtype=q.dtype, device=q.device),
    "attend_top": lambda q, *_: torch.empty(q.shape, dtype=q.dtype, device=q.device),
}
