"""CPU backend: the C++ kernels in ``kernels/cpu`` as torch operators of the namespace ``questbench_cpu``.

The operators are defined through ``torch.library.Library``, with fakes and mutation in their schemas, so that
torch.compile sees one graph. Eager calls go straight to the function behind the operator: a decode step lasts a
fraction of a millisecond, and every microsecond of a call counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from questbench.kernels import _build
from questbench.kernels._ops import MassMode, Merge, Ops

MAX_GROUP = 64
"""Query heads per KV head that scoring and merging have room for (``kMaxGroup`` in vector.h)."""
_MERGES = {"none": 0, "sum_softmax": 1, "max": 2}
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
_library = torch.library.Library("questbench_cpu", "DEF")


def _append(
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    bounds: Tensor | None,
    page_table: Tensor,
    lengths: Tensor,
    new: Tensor | None,
) -> None:
    k, v = _rows(k), _rows(v)
    threads = torch.get_num_threads()
    _build.load_cpu().append(k, v, k_pages, v_pages, bounds, page_table, lengths, new, threads)


def _new_scores(q: Tensor, page_table: Tensor) -> Tensor:
    return torch.empty((q.shape[0], q.shape[1], page_table.shape[1]), dtype=torch.float32, device=q.device)


def _new_lists(scores: Tensor, width: int, merge: int, group: int) -> tuple[Tensor, Tensor]:
    heads = scores.shape[1] // (1 if merge == 0 else group)
    pages = torch.empty((scores.shape[0], heads, width), dtype=torch.int32, device=scores.device)
    return pages, torch.empty((scores.shape[0], heads), dtype=torch.int32, device=scores.device)


def _score(q: Tensor, bounds: Tensor, page_table: Tensor, lengths: Tensor, page_size: int, skip_newest: bool) -> Tensor:
    scores = _new_scores(q, page_table)
    threads = torch.get_num_threads()
    _build.load_cpu().score(q.contiguous(), bounds, page_table, lengths, page_size, skip_newest, scores, threads)
    return scores


def _select(
    scores: Tensor,
    lengths: Tensor,
    page_size: int,
    count: int,
    row_counts: Tensor | None,
    width: int,
    force_newest: bool,
    merge: int,
    group: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    pages, counts = _new_lists(scores, width, merge, group)
    _build.load_cpu().select(
        scores.contiguous(),
        lengths,
        page_size,
        count,
        row_counts,
        force_newest,
        merge,
        group,
        scale,
        pages,
        counts,
        torch.get_num_threads(),
    )
    return pages, counts


def _attend(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    scale: float,
    pages: Tensor | None,
    counts: Tensor | None,
    softcap: float,
    sinks: Tensor | None,
    prefix_q: Tensor | None,
    prefix: int,
    mass: Tensor | None,
    add_mass: bool,
    visits: Tensor | None,
) -> Tensor:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _build.load_cpu().attend(
        q.contiguous(),
        k_pages,
        v_pages,
        page_table,
        lengths,
        scale,
        pages,
        counts,
        softcap,
        sinks,
        None if prefix_q is None else prefix_q.contiguous(),
        prefix,
        mass,
        add_mass,
        visits,
        out,
        torch.get_num_threads(),
    )
    return out


def _attend_top(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    bounds: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    scale: float,
    count: int,
    row_counts: Tensor | None,
    width: int,
    force_newest: bool,
    merge: int,
    softcap: float,
    sinks: Tensor | None,
    visits: Tensor | None,
) -> Tensor:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _build.load_cpu().attend_top(
        q.contiguous(),
        k_pages,
        v_pages,
        bounds,
        page_table,
        lengths,
        scale,
        count,
        row_counts,
        width,
        force_newest,
        merge,
        softcap,
        sinks,
        visits,
        out,
        torch.get_num_threads(),
    )
    return out


def _evict(
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    positions: Tensor,
    mass: Tensor | None,
    capacity: int,
    sinks: int,
    recent: int,
    shared: bool,
) -> None:
    _build.load_cpu().evict(k_pages, v_pages, page_table, lengths, positions, mass, capacity, sinks, recent, shared)


def _check_group(query_heads: int, kv_heads: int) -> None:
    """The kernels keep the scores of a group in arrays of fixed size."""
    if query_heads % kv_heads or query_heads // kv_heads > MAX_GROUP:
        raise ValueError(
            f"{query_heads} query heads over {kv_heads} KV heads: groups of 1 to {MAX_GROUP} are supported"
        )


def _split(count: int | Tensor, width: int, pages: int) -> tuple[int, Tensor | None]:
    """One number for all rows, or one per row (which the kernel caps at ``width``)."""
    if not isinstance(count, int):
        return 0, count
    if width < min(count, pages):
        raise ValueError(f"lists of {width} pages cannot hold {count} of {pages}")
    return count, None


def _rows(entries: Tensor) -> Tensor:
    return entries if entries.stride(-1) == 1 else entries.contiguous()


def _nothing(*_: object) -> None:
    """The fake of an operator that only writes into its arguments."""


_FAKES: dict[str, Callable[..., Any]] = {
    "append": _nothing,
    "evict": _nothing,
    "score": lambda q, bounds, page_table, *_: _new_scores(q, page_table),
    "select": lambda scores, lengths, size, count, rows, width, newest, merge, group, scale: _new_lists(
        scores, width, merge, group
    ),
    "attend": lambda q, *_: torch.empty(q.shape, dtype=q.dtype, device=q.device),
    "attend_top": lambda q, *_: torch.empty(q.shape, dtype=q.dtype, device=q.device),
}
for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, globals()[f"_{_name}"], "CPU")
    torch.library.register_fake(f"questbench_cpu::{_name}", _FAKES[_name], lib=_library)


_EAGER: dict[str, Callable[..., Any]] = {_name: globals()[f"_{_name}"] for _name in _SCHEMAS}


def _op(name: str) -> Callable[..., Any]:
    """The registered operator where a graph is traced, else the function behind it: that saves a third of a call."""
    if torch.compiler.is_compiling():
        operator: Callable[..., Any] = getattr(torch.ops.questbench_cpu, name)
        return operator
    return _EAGER[name]


class CpuOps(Ops):
    """The five ops and their fusion in C++."""

    def unavailable(self) -> str | None:
        """A compiler, or a library that was built before."""
        if _build.is_built() or _build.compiler() is not None:
            return None
        return "no C++ compiler was found and no compiled kernels are in the cache; install g++."

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
        _op("append")(k, v, k_pages, v_pages, bounds, page_table, lengths, new)

    def score(
        self, q: Tensor, bounds: Tensor, page_table: Tensor, lengths: Tensor, page_size: int, *, skip_newest: bool
    ) -> Tensor:
        """See :meth:`Ops.score`."""
        _check_group(q.shape[1], bounds.shape[1])
        out: Tensor = _op("score")(q, bounds, page_table, lengths, page_size, skip_newest)
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
        _check_group(group, 1)
        number, rows = _split(count, width, scores.shape[2])
        lists: tuple[Tensor, Tensor] = _op("select")(
            scores, lengths, page_size, number, rows, width, force_newest, _MERGES[merge], group, scale
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
        if mass_mode == "none":
            mass = None
        out: Tensor = _op("attend")(
            q,
            k_pages,
            v_pages,
            page_table,
            lengths,
            scale,
            pages,
            counts,
            softcap,
            sinks,
            prefix_q,
            prefix,
            mass,
            mass_mode == "sum",
            visits,
        )
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
        _check_group(q.shape[1], bounds.shape[1])
        number, rows = _split(count, width, page_table.shape[1])
        out: Tensor = _op("attend_top")(
            q,
            k_pages,
            v_pages,
            bounds,
            page_table,
            lengths,
            scale,
            number,
            rows,
            width,
            force_newest,
            _MERGES[merge],
            softcap,
            sinks,
            visits,
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
        _op("evict")(k_pages, v_pages, page_table, lengths, positions, mass, capacity, sinks, recent, shared)
