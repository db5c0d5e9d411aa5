"""Every way in which torch attends densely with one query per row: what we are measured against, at its best.

Under grouped-query attention the ways differ by a factor of ten. ``enable_gqa`` is what one would call first; folding
the query heads of a group into the row dimension, so that a group reads its keys once, is often the fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Way = Callable[..., Tensor]
"""``way(q [B, Hq, D], k [B, H, T, D], v, scale, mask=None) -> [B, Hq, D]``; a mask is ``[B or 1, 1, 1, T]``."""


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """scaled_dot_product_attention where every query head has keys of its own."""
    return F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask, scale=scale)[:, :, 0]


def enable_gqa(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """scaled_dot_product_attention that is told about groups."""
    out = F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return out[:, :, 0]


def folded(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """scaled_dot_product_attention with the query heads of a group as rows of one head."""
    return F.scaled_dot_product_attention(_groups(q, k), k, v, attn_mask=mask, scale=scale).reshape(q.shape)


def matmul(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Two matrix products with a softmax between them, a group at a time."""
    return _weighted(_groups(q, k) @ k.transpose(-1, -2), v, scale, mask).reshape(q.shape)


def keys_first(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """As :func:`matmul`, with the first product the other way round; torch chooses other kernels for it."""
    return _weighted((k @ _groups(q, k).transpose(-1, -2)).transpose(-1, -2), v, scale, mask).reshape(q.shape)


GROUPED: Mapping[str, Way] = {
    "enable_gqa": enable_gqa,
    "folded": folded,
    "matmul": matmul,
    "matmul, keys first": keys_first,
}
"""Ways that read keys and values as a cache holds them, once per KV head, where heads are grouped."""
EXPANDED = "expanded"
"""The way that needs keys and values once per query head: :func:`plain` over them."""
UNGROUPED: Mapping[str, Way] = {"sdpa": plain, "matmul": matmul, "matmul, keys first": keys_first}
"""Ways for multi-head attention."""


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The right output in fp32, head by head so that little memory is taken."""
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    groups = _groups(out, k)
    queries = _groups(q, k)
    for row in range(q.shape[0]):
        for head in range(k.shape[1]):
            scores = queries[row, head].float() @ k[row, head].float().T * scale
            groups[row, head] = scores.softmax(-1) @ v[row, head].float()
    return out


def _groups(q: Tensor, k: Tensor) -> Tensor:
    """``[B, Hq, D]`` as ``[B, Hk, Hq / Hk, D]``."""
    return q.view(q.shape[0], k.shape[1], q.shape[1] // k.shape[1], q.shape[2])


def _weighted(scores: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    scores = scores * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
