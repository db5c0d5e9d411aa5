"""The ops of a backend: append, score, select, attend, evict; and quantize, estimate, prune for keys in four bits.

Tensors only: a backend sees no cache, method or model. Shapes use B rows of a batch, Hq query heads, Hk KV heads
(query head h reads KV head h // (Hq // Hk)), D channels, S slots per page, N physical pages, P logical pages per row.

The paged storage that they share is one value, :class:`~questbench.kernels._paged.Paged`. The signature of each method
here, with its ``@operator``, is the only declaration of an op: the torch operators, the methods of compiled backends,
what is allocated and what is checked follow from it (``_operators.py``), and a test holds the C++ bindings to it.

Two kinds of checks hold callers to this. What a tensor is (type, shape, strides, device) and what a shape allows
(heads that divide, room in lists, the backend's limits) is checked in every call, by the binding of every compiled
backend; it is declared once, in ``kernels/include/questbench/contract.h``. What a tensor holds is checked by
``_values.py`` where ``QUESTBENCH_CHECK=1`` is set, as in the tests: page ids inside the pool; lengths within the table,
``mass``, ``visits`` and ``positions``; lists of pages that exist, ascending; an entry that may be evicted. The cpu
backend holds counts per row to the width of the lists in every call, since they are at hand.
All accumulation is fp32 or better; probabilities may be rounded to bf16 where the values are bf16, as tensor cores take
them, and weights below the smallest normal fp32 number may be zero. A row of length 0 is legal: it scores -inf,
selects nothing and attends to zeros. So is an empty list of a longer row: its heads attend to zeros.
Rules that every backend keeps: ties go to the lower index; NaN ranks first; results do not depend on thread counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from questbench.errors import CellError
from questbench.kernels._limits import Limits
from questbench.kernels._operators import operator
from questbench.kernels._paged import Paged

MassMode = Literal["none", "last", "sum"]
Merge = Literal["none", "sum_softmax", "max"]


def _like_query(q: Tensor) -> tuple[Tensor]:
    return (torch.empty(q.shape, dtype=q.dtype, device=q.device),)


def _page_scores(q: Tensor, page_table: Tensor) -> tuple[Tensor]:
    return (torch.empty((*q.shape[:2], *page_table.shape[1:2]), dtype=torch.float32, device=q.device),)


def _entry_logits(q: Tensor, page_size: int, pages: Tensor) -> tuple[Tensor]:
    slots = [width * max(page_size, 0) for width in pages.shape[2:3]]
    return (torch.empty((*q.shape[:2], *slots), dtype=torch.float32, device=q.device),)


def _token_lists(pages: Tensor, page_size: int) -> tuple[Tensor, Tensor]:
    slots = [width * max(page_size, 0) for width in pages.shape[2:3]]
    tokens = torch.empty((*pages.shape[:2], *slots), dtype=torch.int32, device=pages.device)
    return tokens, torch.empty(pages.shape[:2], dtype=torch.int32, device=pages.device)


def _page_lists(scores: Tensor, width: int, merge: int, group: int) -> tuple[Tensor, Tensor]:
    rows, heads = scores.shape[:1], scores.shape[1:2]
    lists = [number // (1 if merge == 0 else max(group, 1)) for number in heads]
    pages = torch.empty((*rows, *lists, max(width, 0)), dtype=torch.int32, device=scores.device)
    return pages, torch.empty((*rows, *lists), dtype=torch.int32, device=scores.device)


class Ops(ABC):
    """What a backend must provide. The docstrings are the contract; ``reference`` is the specification."""

    device: ClassVar[str] = "cpu"
    """Where its tensors live; ``any`` for a backend that runs on every device."""
    dtypes: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "bf16")
    """Storage types that it has kernels for."""
    limits: ClassVar[Limits] = Limits()
    """Shapes that it has kernels for."""

    @property
    def name(self) -> str:
        """Registered name: the stem of the backend's file."""
        return type(self).__module__.rsplit(".", 1)[-1]

    def _missing(self, op: str) -> CellError:
        return CellError(f"The {self.name} backend has no kernel for {op}.", "Choose another --backend.")

    @abstractmethod
    def unavailable(self) -> str | None:
        """``None`` if the backend works on this machine, else the reason as one sentence. Never raises."""

    def settings(self) -> dict[str, Any]:
        """What was chosen for this machine and may change how fast it is, for the record of a run."""
        return {}

    @operator(paged="k_pages v_pages bounds? page_table lengths", writes="k_pages v_pages bounds lengths", rows="k v")
    @abstractmethod
    def append(self, k: Tensor, v: Tensor, paged: Paged, new: Tensor | None = None) -> None:
        """Store new entries, advance ``lengths`` in place and bring the bounds of every touched page up to date.

        Args:
            k, v: ``[B, Hk, n, D]`` in storage dtype, any strides with a contiguous last dimension.
            paged: its bounds, where it has some, are after the call exactly the max and min over the valid entries
                of each touched page (NaN propagates). By page, open pages included, given that theirs were exact
                before: whoever cuts a row back brings them up to date. By channel, those of pages that are full; the
                others' are left alone.
            new: ``[B]`` int32, entries that row b really appends: the *last* ``new[b]`` of its n (left padding).
                ``None`` means all n. The pages they need must already stand in ``paged.table``.
        """

    @operator(paged="bounds page_table lengths page_size", results="scores", make=_page_scores, strided="q")
    @abstractmethod
    def score(self, q: Tensor, paged: Paged, *, skip_newest: bool) -> Tensor:
        """Upper bounds of q . k for every page (Quest, section 3.3): ``sum_d max(q_d * max_d, q_d * min_d)``.

        Args:
            q: ``[B, Hq, D]`` in storage dtype.
            paged: it must have bounds.
            skip_newest: leave the page that holds the newest entry unscored. Required with bounds by channel, where
                an open page has none.

        Returns:
            ``[B, Hq, P]`` fp32; -inf for unscored pages and pages a row does not have.
        """

    @operator(results="pages counts", make=_page_lists, strided="scores")
    @abstractmethod
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
        """The best pages of each head, exact on the given fp32 scores.

        Args:
            scores: ``[B, Hq, P]`` fp32.
            count: pages to read, the newest included: one int, or ``[B]`` int32 per row. Rows with no more pages
                than that get all of them.
            width: list slots to return, at least the largest count that can occur.
            force_newest: the newest page is always taken and only ``count - 1`` others are chosen by score.
            merge: how the ``group`` query heads of one KV head become one list. ``none`` gives a list per query
                head. ``max`` takes the maximum over the group. ``sum_softmax`` ranks by the sum over the
                group of the softmax over pages of ``scale * score``, compared in logarithms (a group of one: by
                the scores themselves). A page for which ``scale * score`` is NaN or +inf in any head of the
                group ranks first, both alike, and is left out of the sums; a page at -inf in all heads ranks last; a
                head whose other pages are all at -inf adds nothing.

        Returns:
            ``pages`` ``[B, H, width]`` int32, logical page ids ascending, -1 past the end, and ``counts``
            ``[B, H]`` int32, with H = Hq for ``none`` and Hq // group otherwise. Ties: lower page first. NaN: first.
        """

    @operator(
        paged="k_pages v_pages page_table lengths",
        writes="mass visits lse",
        results="out",
        make=_like_query,
        strided="q prefix_q",
    )
    @abstractmethod
    def attend(
        self,
        q: Tensor,
        paged: Paged,
        scale: float,
        *,
        pages: Tensor | None = None,
        tokens: Tensor | None = None,
        counts: Tensor | None = None,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        prefix_q: Tensor | None = None,
        prefix: int = 0,
        mass: Tensor | None = None,
        mass_mode: MassMode = "none",
        visits: Tensor | None = None,
        lse: Tensor | None = None,
    ) -> Tensor:
        """Softmax attention of one query per head over everything, or over lists of pages or of tokens.

        Args:
            q: ``[B, Hq, D]`` in storage dtype.
            pages, counts: as :meth:`select` returns them, H = Hk or H = Hq. ``None``: all entries (dense).
            tokens: ``[B, H, width]`` int32, instead of pages: the slots to read, ascending, ``counts`` of them.
            softcap: logits become ``softcap * tanh(logit / softcap)`` after scaling; 0 switches it off.
            sinks: ``[Hq]`` fp32, one extra logit per query head that takes mass but has no value.
            prefix_q, prefix: entries in slots below ``prefix`` use ``prefix_q`` ``[B, Hq, D]`` as their query
                (StreamingLLM's re-indexed positions).
            mass: ``[B, Hk, C]`` fp32, C at least the longest row. ``last`` overwrites slots below each row's length
                with this query's normalised probabilities, summed over the query heads of the group (0 where not
                attended, even where those read are NaN); ``sum`` adds them.
            visits: ``[B, Hk, C]`` int32: incremented for every slot each time a query head reads it. This is where
                the entries really read are counted.
            lse: ``[B, Hq]`` fp32, overwritten with the natural logarithm of the sum of exp(logit) over what was read,
                the sink included: of what the output was divided by. So two calls over disjoint entries, of which one
                has the sink, can be merged. -inf where nothing was read and there is no sink; NaN where the output is
                for a NaN or +inf among the logits.

        Returns:
            ``[B, Hq, D]`` in the dtype of ``q``; zeros for empty rows and lists. Entries of a list whose logits are all
            -inf, without a sink, give NaN, as softmax does.
        """

    @operator(
        paged="k_pages v_pages bounds page_table lengths", writes="visits", results="out", make=_like_query, strided="q"
    )
    def attend_top(
        self,
        q: Tensor,
        paged: Paged,
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
        """Score, select and attend in one call. A backend may fuse it; the result must equal the three ops."""
        bounds = paged.bounds
        stored = -(-len(paged.k) // 64) if bounds is not None and bounds.dim() == 5 else len(paged.k)
        if bounds is None or bounds.shape[:2] != (stored, paged.kv_heads):
            shown = "none" if bounds is None else tuple(bounds.shape)
            raise ValueError(f"bounds {shown} are not those of pages {tuple(paged.k.shape)}")
        scores = self.score(q, paged, skip_newest=force_newest)
        pages, counts = self.select(
            scores,
            paged.lengths,
            paged.page_size,
            count,
            width=width,
            force_newest=force_newest,
            merge=merge,
            group=q.shape[1] // paged.kv_heads,
            scale=scale,
        )
        return self.attend(q, paged, scale, pages=pages, counts=counts, softcap=softcap, sinks=sinks, visits=visits)

    @operator(paged="k_pages page_table lengths", writes="codes ranges")
    def quantize(self, paged: Paged, codes: Tensor, ranges: Tensor, incoming: int, new: Tensor | None = None) -> None:
        """Four-bit codes of the newest keys, which are in their pages already (layout and equations: ``_codes.py``).

        The arithmetic is fp32 and every operation of it is rounded once, so that all backends write the same bits.

        Args:
            codes: ``[B, Hk, C, bytes]`` uint8 by slot, C at least the longest row; other slots are left alone.
            ranges: ``[B, Hk, C, 2]`` fp32: step and least value of each entry.
            incoming: entries of each row, its newest ones; all of a row that has fewer.
            new: ``[B]`` int32, up to ``incoming``: what counts instead in row b.
        """
        raise self._missing("quantize")

    @operator(results="logits", make=_entry_logits, strided="q")
    def estimate(
        self,
        q: Tensor,
        codes: Tensor,
        ranges: Tensor,
        lengths: Tensor,
        page_size: int,
        pages: Tensor,
        counts: Tensor,
        scale: float,
        softcap: float = 0.0,
    ) -> Tensor:
        """Logits of the entries of listed pages: ``scale * (step * sum_d q_d code_d + low * sum_d q_d)``.

        Args:
            q: ``[B, Hq, D]`` in storage dtype.
            codes, ranges: as :meth:`quantize` leaves them.
            pages, counts: as :meth:`select` returns them, H = Hk or H = Hq.
            softcap: as in :meth:`attend`.

        Returns:
            ``[B, Hq, width * S]`` fp32, slot s of the list's i-th page at ``i * S + s``; -inf behind the list and
            in slots that its last page does not have yet. NaN where the range of an entry is NaN.
        """
        raise self._missing("estimate")

    @operator(results="tokens token_counts", make=_token_lists, strided="logits")
    def prune(
        self, logits: Tensor, lengths: Tensor, page_size: int, pages: Tensor, counts: Tensor, p: float
    ) -> tuple[Tensor, Tensor]:
        """The smallest set of listed entries that holds a share ``p`` of the attention mass, for every list.

        An entry weighs ``w = rint(2**30 * mean over the query heads of its list of softmax(logits))``, a whole number.
        Entries are taken by falling weight, the lower slot first among equals, until their sum reaches
        ``max(1, ceil(p * sum of all))``. So the set is exact for given weights, and two backends can differ in it only
        where their weights do: by the rounding of an fp32 softmax. An entry whose logit is NaN or +inf in any of the
        heads is always taken and has no weight; such logits are left out of their head's softmax, and a head that
        knows only -inf adds nothing. Where nothing has any weight and nothing is undefined, the first entry is taken.

        Args:
            logits: ``[B, Hq, width * S]`` fp32, as :meth:`estimate` returns them.
            pages, counts: the lists they were estimated for.
            p: 0 to 1.

        Returns:
            ``tokens`` ``[B, H, width * S]`` int32, slots ascending, -1 past the end, and ``token_counts`` ``[B, H]``.
        """
        raise self._missing("prune")

    @operator(paged="k_pages v_pages page_table lengths", writes="k_pages v_pages lengths positions mass")
    @abstractmethod
    def evict(
        self,
        paged: Paged,
        positions: Tensor,
        mass: Tensor | None,
        *,
        capacity: int,
        sinks: int,
        recent: int,
        shared: bool,
    ) -> None:
        """Drop one entry of every row that holds ``capacity + 1``, in place; other rows stay untouched.

        The victim of each KV head is the candidate with the least ``mass`` (the oldest, if ``mass`` is ``None``);
        candidates are entries whose position is at least ``sinks`` and that are not among the ``recent`` newest
        positions (position <= newest - recent). Ties go to the oldest; NaN mass counts as the greatest. The last
        entry (K, V, position, mass) moves into the victim's slot and ``lengths`` drops to ``capacity``: one slot
        per KV head is overwritten at most, order is not kept, positions are.

        Args:
            positions: ``[B, Hk, C]`` int32, the text position of every slot.
            mass: ``[B, Hk, C]`` fp32 or ``None``.
            shared: one victim for all KV heads of a row, by the mass summed over them (TOVA). Slots of all KV heads
                then hold the same positions.
        """
