"""Causal attention over keys and values in one piece: by torch's fused kernels, or written out in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from questbench.attention import flash
from questbench.attention.scoring import Scoring

PREFILL_CHUNK = 256
"""Most query rows per block where prefill attention is masked or written out: memory stays linear in the length."""
PREFILL_BLOCK = 1 << 25
"""Probabilities that are written out at once (128 MiB of them): longer texts get blocks of fewer rows."""


def plain(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor | None]:
    """Causal attention by torch's fused kernel; the queries ``[Hq, m, D]`` are the newest of the n entries.

    Returns:
        Output ``[Hq, m, D]``, and log-sum-exp ``[Hq, m]`` where the kernel leaves it.
    """
    if flash.usable(queries, keys, values):
        return flash.causal(queries, keys, values, scale)
    return _by_torch(queries, keys, values, scale), None


def _by_torch(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    count, entries = queries.shape[1], keys.shape[1]
    if count == entries:
        return F.scaled_dot_product_attention(
            queries[None], keys[None], values[None], is_causal=count > 1, scale=scale, enable_gqa=True
        )[0]
    if _flash(queries, keys, values):
        # With a mask there would be no fused kernel for grouped heads on a GPU; flash attention needs none.
        from torch.nn.attention.bias import causal_lower_right  # brings all of torch._dynamo along: two seconds

        mask: Any = causal_lower_right(count, entries)
        return F.scaled_dot_product_attention(
            queries[None], keys[None], values[None], attn_mask=mask, scale=scale, enable_gqa=True
        )[0]
    out = torch.empty_like(queries)
    place = torch.arange(entries, device=queries.device)
    for start in range(0, count, PREFILL_CHUNK):
        stop = min(start + PREFILL_CHUNK, count)
        high = entries - count + stop
        seen = place[:high] <= torch.arange(high - stop + start, high, device=queries.device)[:, None]
        out[:, start:stop] = F.scaled_dot_product_attention(
            queries[None, :, start:stop],
            keys[None, :, :high],
            values[None, :, :high],
            attn_mask=seen[None, None],
            scale=scale,
            enable_gqa=True,
        )[0]
    return out


def _flash(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether torch runs flash attention for these, whose causal diagonal ends in the lower right corner."""
    if not queries.is_cuda:
        return False
    cuda: Any = torch.backends.cuda
    asked = cuda.SDPAParams(queries[None], keys[None], values[None], None, 0.0, False, True)
    return bool(cuda.can_use_flash_attention(asked))


def written_out(
    queries: Tensor,
    keys: Tensor,
    values: Tensor | None,
    scoring: Scoring,
    prefix_q: Tensor | None = None,
    prefix: int = 0,
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Causal attention in blocks of query rows, in fp32.

    Yields:
        (first row, probabilities ``[Hk, g, m, entries up to the last row's]``, output ``[Hq, m, D]``; ``None`` without
        values).
    """
    heads, count, _ = queries.shape
    kv_heads, entries, _ = keys.shape
    wide_k, wide_v = keys.float(), None if values is None else values.float()
    grouped = queries.float().unflatten(0, (kv_heads, -1))
    turned = None if prefix_q is None else prefix_q.float().unflatten(0, (kv_heads, -1))
    place = torch.arange(entries, device=queries.device)
    rows = max(1, min(PREFILL_CHUNK, PREFILL_BLOCK // (heads * entries)))
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        high = entries - count + stop
        logits = _products(grouped[:, :, start:stop], wide_k[:, :high]) * scoring.scale
        if turned is not None:
            logits[..., :prefix] = _products(turned[:, :, start:stop], wide_k[:, :prefix]) * scoring.scale
        if scoring.softcap > 0:
            logits = scoring.softcap * torch.tanh(logits / scoring.softcap)
        own = torch.arange(high - stop + start, high, device=queries.device)
        logits.masked_fill_(place[:high] > own[:, None], -torch.inf)
        if scoring.sinks is not None:
            sink = scoring.sinks.float().view(kv_heads, -1, 1, 1).expand(-1, -1, stop - start, 1)
            probabilities = torch.softmax(torch.cat([logits, sink], dim=-1), dim=-1)[..., :high]
        else:
            probabilities = torch.softmax(logits, dim=-1)
        out = None
        if wide_v is not None:
            weighted = probabilities.flatten(1, 2) @ wide_v[:, :high]
            out = weighted.unflatten(1, (-1, stop - start)).flatten(0, 1)
        yield start, probabilities, out


def _products(queries: Tensor, keys: Tensor) -> Tensor:
    """``[Hk, g, m, D]`` and ``[Hk, n, D]`` -> ``[Hk, g, m, n]``: a group's queries share their head's keys."""
    products: Tensor = queries.flatten(1, 2) @ keys.transpose(1, 2)
    return products.view(*queries.shape[:3], keys.shape[1])
