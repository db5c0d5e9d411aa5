"""The specification: every op in plain torch, written to be read. Slow on purpose; runs on any device.

    score_page  = sum_d max(q_d * max_d, q_d * min_d)         an upper bound of q . k for every key of the page
    p           = softmax(softcap(scale * q . K))             over the entries read, plus a sink logit without a value
    out         = p . V

Storage may be fp16, bf16 or fp32, and float64 too: with float64 tensors every op computes in float64, which is what
error budgets are measured against.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from questbench.kernels._bounds import is_by_channel, read_bounds, write_bounds
from questbench.kernels._codes import quantized, widened_codes
from questbench.kernels._ops import MassMode, Merge, Ops
from questbench.kernels._paged import Paged


def _wide(tensor: Tensor) -> Tensor:
    """The dtype that accumulation happens in: fp32, or fp64 for fp64 storage."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _gather(pages: Tensor, table: Tensor, length: int) -> Tensor:
    """The first ``length`` entries of one row: ``[N, Hk, S, D]`` and ``[P]`` -> ``[Hk, length, D]``."""
    page_size = pages.shape[2]
    used = table[: -(-length // page_size)].long()
    return pages[used].transpose(0, 1).flatten(1, 2)[:, :length]


class ReferenceOps(Ops):
    """The ops in plain torch."""

    device: ClassVar[str] = "any"

    def unavailable(self) -> str | None:
        """Always available where torch is."""
        return None

    def append(self, k: Tensor, v: Tensor, paged: Paged, new: Tensor | None = None) -> None:
        """See :meth:`Ops.append`."""
        k_pages, v_pages, page_table, lengths, bounds = paged
        page_size, incoming = k_pages.shape[2], k.shape[2]
        for row in range(k.shape[0]):
            count = incoming if new is None else int(new[row])
            first = int(lengths[row])
            slots = torch.arange(first, first + count, device=k.device)
            physical = page_table[row].long()[slots // page_size]
            k_pages[physical, :, slots % page_size] = k[row, :, incoming - count :].transpose(0, 1)
            v_pages[physical, :, slots % page_size] = v[row, :, incoming - count :].transpose(0, 1)
            lengths[row] += count
            if bounds is None or count == 0:
                continue
            for page in range(first // page_size, (first + count - 1) // page_size + 1):
                valid = min(page_size, first + count - page * page_size)
                if valid < page_size and is_by_channel(bounds):
                    continue
                target = int(page_table[row, page])
                keys = k_pages[target, :, :valid]
                write_bounds(bounds, target, torch.stack([keys.amax(1), keys.amin(1)], dim=1))

    def score(self, q: Tensor, paged: Paged, *, skip_newest: bool) -> Tensor:
        """See :meth:`Ops.score`."""
        rows, query_heads, _ = q.shape
        _, _, page_table, lengths, bounds = paged
        if bounds is None:
            raise ValueError("score: these pages have no bounds")
        group = query_heads // bounds.shape[1]
        wide = _wide(q)
        scores = torch.full((rows, query_heads, page_table.shape[1]), -torch.inf, dtype=wide.dtype, device=q.device)
        for row in range(rows):
            count = -(-int(lengths[row]) // paged.page_size) - int(skip_newest)
            if count <= 0:
                continue
            row_bounds = _wide(read_bounds(bounds, page_table[row, :count].long())).repeat_interleave(group, dim=1)
            products = wide[row, None, :, None] * row_bounds
            scores[row, :, :count] = products.amax(2).sum(-1).T
        return scores

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
        rows, query_heads, _ = scores.shape
        heads = query_heads if merge == "none" else query_heads // group
        pages = torch.full((rows, heads, width), -1, dtype=torch.int32, device=scores.device)
        counts = torch.zeros((rows, heads), dtype=torch.int32, device=scores.device)
        for row in range(rows):
            total = -(-int(lengths[row]) // page_size)
            wanted = min(total, int(count if isinstance(count, int) else count[row]))
            if wanted <= 0:
                continue
            scored = total - int(force_newest)
            merged = _merge(scores[row, :, :scored], merge, group, scale)
            # Stable and descending: equal scores keep their order, so ties go to the lower page; NaN sorts first.
            order = merged.sort(dim=-1, descending=True, stable=True).indices
            chosen = order[:, : wanted - int(force_newest)]
            if force_newest:
                chosen = torch.cat([chosen, chosen.new_full((heads, 1), total - 1)], dim=-1)
            pages[row, :, :wanted] = chosen.sort(dim=-1).values.to(torch.int32)
            counts[row] = wanted
        return pages, counts

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
        """See :meth:`Ops.attend`."""
        out = torch.zeros_like(q)
        k_pages, v_pages, page_table, lengths, _ = paged
        kv_heads, page_size = k_pages.shape[1:3]
        group = q.shape[1] // kv_heads
        listed, size = (pages, page_size) if tokens is None else (tokens, 1)
        if lse is not None:
            lse[:] = -torch.inf if sinks is None else sinks
        for row in range(q.shape[0]):
            length = int(lengths[row])
            if length == 0:
                continue
            keys = _wide(_gather(k_pages, page_table[row], length)).repeat_interleave(group, dim=0)
            values = _wide(_gather(v_pages, page_table[row], length)).repeat_interleave(group, dim=0)
            logits = (keys @ _wide(q[row])[..., None])[..., 0] * scale
            if prefix_q is not None and prefix > 0:
                logits[:, :prefix] = (keys[:, :prefix] @ _wide(prefix_q[row])[..., None])[..., 0] * scale
            if softcap > 0:
                logits = softcap * torch.tanh(logits / softcap)
            read = _read_mask(listed, counts, row, length, size, q.shape[1])
            # Unread entries are taken out, not masked: a NaN behind them must not leak into the output.
            logits = torch.where(read, logits, -torch.inf)
            values = torch.where(read[..., None], values, 0.0)
            if sinks is not None:
                logits = torch.cat([logits, sinks[:, None].to(logits.dtype)], dim=-1)
            if lse is not None:
                lse[row] = _sum_of_exponentials(logits).to(lse.dtype)
            # Lists may be empty, whose softmax is NaN; and a NaN that was read is no mass of what was not.
            p = torch.where(read, torch.softmax(logits, dim=-1)[:, :length], 0.0)
            out[row] = (p[:, None] @ values)[:, 0].to(q.dtype)
            by_kv_head = p.view(kv_heads, group, length).sum(1)
            if mass is not None and mass_mode == "last":
                mass[row, :, :length] = by_kv_head.to(mass.dtype)
            elif mass is not None and mass_mode == "sum":
                mass[row, :, :length] += by_kv_head.to(mass.dtype)
            if visits is not None:
                visits[row, :, :length] += read.view(kv_heads, group, length).sum(1, dtype=torch.int32)
        return out

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
        """See :meth:`Ops.evict`."""
        k_pages, v_pages, page_table, lengths, _ = paged
        page_size = k_pages.shape[2]
        for row in range(lengths.shape[0]):
            if int(lengths[row]) != capacity + 1:
                continue
            last = capacity
            source = int(page_table[row, last // page_size]), last % page_size
            total = None if mass is None else mass[row].sum(0)
            for head in range(k_pages.shape[1]):
                place = positions[row, head, : capacity + 1]
                weight = None if mass is None or total is None else (total if shared else mass[row, head])[: last + 1]
                slot = victim(place, weight, sinks=sinks, recent=recent)
                target = int(page_table[row, slot // page_size]), slot % page_size
                for stored in (k_pages, v_pages):
                    stored[target[0], head, target[1]] = stored[source[0], head, source[1]]
                positions[row, head, slot] = positions[row, head, last]
                if mass is not None:
                    mass[row, head, slot] = mass[row, head, last]
            lengths[row] = capacity

    def quantize(self, paged: Paged, codes: Tensor, ranges: Tensor, incoming: int, new: Tensor | None = None) -> None:
        """See :meth:`Ops.quantize`."""
        for row in range(len(paged.lengths)):
            length = int(paged.lengths[row])
            first = max(0, length - (incoming if new is None else int(new[row])))
            if first < length:
                keys = _wide(_gather(paged.k, paged.table[row], length))[:, first:]
                codes[row, :, first:length], ranges[row, :, first:length] = quantized(keys)

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
        """See :meth:`Ops.estimate`."""
        wide, lists, kv_heads = _wide(q).unflatten(1, (pages.shape[1], -1)), pages.shape[1], codes.shape[1]
        shape = (*wide.shape[:3], pages.shape[2] * page_size)
        logits = torch.full(shape, -torch.inf, dtype=wide.dtype, device=q.device)
        for row in range(len(q)):
            for head in range(lists):
                slots = _listed(pages[row, head], int(counts[row, head]), int(lengths[row]), page_size)
                source = row, head * kv_heads // lists, slots
                keys = widened_codes(codes[source], q.shape[2]).to(wide.dtype)
                step, low = ranges[source].to(wide.dtype).unbind(-1)
                own = wide[row, head]
                found = scale * (step * (own @ keys.T) + low * own.sum(-1, keepdim=True))
                logits[row, head, :, : len(slots)] = softcap * torch.tanh(found / softcap) if softcap > 0 else found
        return logits.flatten(1, 2)

    def prune(
        self, logits: Tensor, lengths: Tensor, page_size: int, pages: Tensor, counts: Tensor, p: float
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Ops.prune`."""
        rows, lists, width = pages.shape
        tokens = torch.full((rows, lists, width * page_size), -1, dtype=torch.int32, device=logits.device)
        token_counts = torch.zeros((rows, lists), dtype=torch.int32, device=logits.device)
        grouped = logits.unflatten(1, (lists, -1))
        for row in range(rows):
            for head in range(lists):
                slots = _listed(pages[row, head], int(counts[row, head]), int(lengths[row]), page_size)
                if len(slots) == 0:
                    continue
                taken = slots[smallest_set(grouped[row, head, :, : len(slots)], p)]
                tokens[row, head, : len(taken)] = taken.to(torch.int32)
                token_counts[row, head] = len(taken)
        return tokens, token_counts


def victim(positions: Tensor, mass: Tensor | None, *, sinks: int, recent: int) -> int:
    """Slot of the entry to drop: least mass among the candidates, the oldest where masses are equal or ``None``.

    Args:
        positions: ``[n]`` text positions of the slots.
        mass: ``[n]`` or ``None``; NaN counts as the greatest.
    """
    candidates = (positions >= sinks) & (positions <= positions.max() - recent)
    slots = candidates.nonzero()[:, 0]
    slots = slots[positions[slots].argsort()]
    if mass is None:
        return int(slots[0])
    weight = torch.where(mass[slots].isnan(), torch.inf, mass[slots])
    return int(slots[weight.sort(stable=True).indices[0]])


def _merge(scores: Tensor, merge: Merge, group: int, scale: float) -> Tensor:
    """Scores of the query heads of each KV head become one: ``[Hq, P]`` -> ``[H, P]``."""
    if merge == "none":
        return scores
    grouped = scores.view(scores.shape[0] // group, group, -1)
    if merge == "max":
        return grouped.amax(1)
    # In logarithms, which rank alike: pages far below the best keep their order instead of vanishing to zero. A page
    # without a finite bound ranks first (NaN) and takes no part in the sums, so that it cannot hide the others.
    scaled = scale * grouped
    known = scaled < torch.inf
    if group == 1:
        return torch.where(known, grouped, torch.nan)[:, 0]
    total = torch.where(known, scaled, -torch.inf).logsumexp(-1, keepdim=True)
    total = torch.where(total == -torch.inf, 0.0, total)  # a head that knows only -inf adds nothing
    return torch.where(known, scaled - total, torch.nan).logsumexp(1)


def _sum_of_exponentials(logits: Tensor) -> Tensor:
    """Logarithm of the sum of exp over the last dimension; NaN where a logit is NaN or +inf, as in the output."""
    return torch.where((logits == torch.inf).any(-1), torch.nan, logits.logsumexp(-1))


def _read_mask(
    pages: Tensor | None, counts: Tensor | None, row: int, length: int, page_size: int, query_heads: int
) -> Tensor:
    """Which entries each query head of a row reads: ``[Hq, length]`` bool. Tokens are pages of one entry."""
    device = None if pages is None else pages.device
    read = torch.ones((query_heads, length), dtype=torch.bool, device=device)
    if pages is None or counts is None:
        return read
    per_list = query_heads // pages.shape[1]
    slot_page = torch.arange(length, device=device) // page_size
    for head in range(query_heads):
        listed = pages[row, head // per_list, : int(counts[row, head // per_list])]
        read[head] = torch.isin(slot_page.to(listed.dtype), listed)
    return read


def _listed(pages: Tensor, count: int, length: int, page_size: int) -> Tensor:
    """Slots of the entries of one list, int64."""
    slots = pages[:count, None].long() * page_size + torch.arange(page_size, device=pages.device)
    return slots[slots < length]


def smallest_set(logits: Tensor, p: float) -> Tensor:
    """Places of the fewest entries that hold a share ``p`` of the mass, ascending; the rule of :meth:`Ops.prune`.

    Args:
        logits: ``[heads, n]``, n at least 1.
    """
    known = logits < torch.inf
    share = torch.softmax(torch.where(known, logits, -torch.inf), dim=-1)
    share = torch.where(share.isnan(), 0.0, share).mean(0)  # of a head that knows only -inf
    defined = known.all(0)
    mass = torch.where(defined, (2**30 * share).round(), 0).long()
    total = int(mass.sum())
    target = max(math.ceil(p * total), min(total, 1))
    order = mass.sort(descending=True, stable=True).indices
    fewest = int((mass[order].cumsum(0) < target).sum()) + 1 if total or defined.all() else 0
    taken = ~defined
    taken[order[:fewest]] = True
    return taken.nonzero()[:, 0]
