"""Causal attention on the CPU by torch's flash kernel and without masks, which cost more than what they save.

The kernel's own diagonal begins in the upper left corner. So queries behind earlier entries are read in two calls, the
earlier entries without a mask and their own along the diagonal, and merged by log-sum-exp. Within a window, blocks of
rows see equally many entries each, so that one small mask serves all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 64
"""Rows of a block within a window W: each reads W + 63 entries, and fewer rows make slow products."""
MASS_ROWS, MASS_COLUMNS = 128, 512
"""Tile of probabilities that stays in the processor's cache while its columns are summed."""

_kernel: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def usable(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether torch's kernel takes these tensors ``[..., n, D]``."""
    alike = queries.shape[-1] == keys.shape[-1] == values.shape[-1] and queries.dtype == keys.dtype == values.dtype
    rows = all(x.stride(-1) == 1 and x.device.type == "cpu" for x in (queries, keys, values))
    return _kernel is not None and alike and rows and queries.is_floating_point()


def causal(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention of the newest m of n entries.

    Args:
        queries: ``[Hq, m, D]``; keys, values: ``[Hk, n, D]``.

    Returns:
        Output ``[Hq, m, D]`` and log-sum-exp ``[Hq, m]`` (fp32).
    """
    count, entries = queries.shape[1], keys.shape[1]
    # One query sees everything: there is no diagonal.
    earlier = entries if count == 1 else entries - count
    if earlier == 0:
        return _diagonal(queries, keys, values, scale)
    kv_heads = keys.shape[0]
    # What all queries see, the query heads of one KV head see as further rows.
    out, lse = _kernel(
        queries.reshape(1, kv_heads, -1, queries.shape[2]),
        keys[None, :, :earlier],
        values[None, :, :earlier],
        0.0,
        False,
        scale=scale,
    )
    out, lse = out.reshape(queries.shape), lse.reshape(queries.shape[:2])
    if earlier == entries:
        return out, lse
    own, own_lse = _diagonal(queries, keys[:, earlier:], values[:, earlier:], scale)
    both = torch.logaddexp(lse, own_lse)
    merged = out * (lse - both).exp_()[..., None] + own * (own_lse - both).exp_()[..., None]
    return merged.to(queries.dtype), both


def _diagonal(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """As many queries as entries. The heads of a group stand in the batch, where keys are shared without a copy."""
    group = queries.shape[0] // keys.shape[0]
    out, lse = _kernel(
        queries.unflatten(0, (-1, group)).transpose(0, 1),
        keys.expand(group, -1, -1, -1),
        values.expand(group, -1, -1, -1),
        0.0,
        True,
        scale=scale,
    )
    return out.transpose(0, 1).flatten(0, 1), lse.transpose(0, 1).flatten(0, 1)


def windowed(queries: Tensor, keys: Tensor, values: Tensor, window: int, scale: float) -> Tensor:
    """Causal attention of the newest m of n entries, each query's own and the ``window - 1`` before it.

    Args:
        queries: ``[Hq, m, D]``; keys, values: ``[Hk, n, D]``.

    Returns:
        ``[Hq, m, D]``.
    """
    count, entries = queries.shape[1], keys.shape[1]
    earlier = entries - count
    # Queries whose window reaches back beyond the first entry have no window to speak of.
    head = min(max(window - 1 - earlier, 0), count)
    out = torch.empty_like(queries)
    if head:
        seen = earlier + head
        out[:, :head] = causal(queries[:, :head], keys[:, :seen], values[:, :seen], scale)[0]
    whole = head + (count - head) // BLOCK * BLOCK
    for start, stop, rows in ((head, whole, BLOCK), (whole, count, count - whole)):
        if start < stop:
            low, high = earlier + start - window + 1, earlier + stop
            out[:, start:stop] = _blocks(queries[:, start:stop], keys[:, low:high], values[:, low:high], rows, scale)
    return out


def _blocks(queries: Tensor, keys: Tensor, values: Tensor, rows: int, scale: float) -> Tensor:
    """Blocks of ``rows`` queries; the first query's window begins with the first entry."""
    heads, count, width = queries.shape
    kv_heads, blocks = keys.shape[0], count // rows
    window = keys.shape[1] - count + 1
    columns = rows + window - 1
    place, own = torch.arange(columns), torch.arange(rows)[:, None]
    hidden = torch.zeros((rows, columns), dtype=queries.dtype)
    hidden.masked_fill_((place < own) | (place >= own + window), -torch.inf)
    # Blocks stand in the batch: their keys overlap in memory, and nothing is copied.
    stacked = [x.unfold(1, columns, rows).permute(1, 0, 3, 2) for x in (keys, values)]
    folded = queries.view(kv_heads, -1, blocks, rows, width).permute(2, 0, 1, 3, 4).flatten(2, 3)
    mask = hidden.repeat(heads // kv_heads, 1)[None, None]
    out = _kernel(folded, *stacked, 0.0, False, attn_mask=mask, scale=scale)[0]
    turned: Tensor = out.view(blocks, kv_heads, -1, rows, width).permute(1, 2, 0, 3, 4)
    return turned.reshape(heads, count, width)


def column_sums(queries: Tensor, keys: Tensor, lse: Tensor, scale: float) -> Tensor:
    """Attention probabilities of the newest m of n entries, summed over queries and the heads of a group.

    Args:
        queries: ``[Hq, m, D]``; keys: ``[Hk, n, D]``.
        lse: ``[Hq, m]``: log-sum-exp of their logits, as :func:`causal` gives it.

    Returns:
        ``[Hk, n]`` fp32.
    """
    kv_heads, entries, _ = keys.shape
    count = queries.shape[1]
    wide = keys.float().transpose(1, 2)
    scaled = (queries.float() * scale).unflatten(0, (kv_heads, -1))
    less = -lse.float().unflatten(0, (kv_heads, -1))
    sums = torch.zeros((kv_heads, entries), device=keys.device)
    for start in range(0, count, MASS_ROWS):
        stop = min(start + MASS_ROWS, count)
        rows = scaled[:, :, start:stop].flatten(1, 2)
        norm = less[:, :, start:stop].flatten(1, 2)[..., None]
        own = entries - count + start
        for low in range(0, own, MASS_COLUMNS):
            high = min(low + MASS_COLUMNS, own)
            sums[:, low:high] += torch.baddbmm(norm, rows, wide[..., low:high]).exp_().sum(1)
        diagonal = torch.baddbmm(norm, rows, wide[..., own : own + stop - start]).exp_()
        sums[:, own : own + stop - start] += diagonal.unflatten(1, (-1, stop - start)).tril_().sum((1, 2))
    return sums
