"""FlashInfer over lists of pages, as a second opinion on sparse reads: each list is a request over pages of one head.

Seen as [N * Hk, 1, S, D], page n of KV head h is page n * Hk + h of a cache with one head, so that every (row, KV
head), or (row, query head), has a page table of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questbench.baselines import flashinfer
from questbench.baselines._steps import Heads
from questbench.kernels._paged import Paged


def attend(
    q: Tensor,
    paged: Paged,
    scale: float,
    *,
    pages: Tensor | None = None,
    counts: Tensor | None = None,
    path: str = "tensor-core",
) -> Tensor:
    """As the op of this name; rows and lists must not be empty."""
    k_pages, v_pages, page_table, lengths, _ = paged
    (rows, query_heads, dim), (kv_heads, size) = q.shape, k_pages.shape[1:3]
    if pages is None or counts is None:
        table, held, lists = page_table, lengths, 1
        heads = query_heads, kv_heads
    else:
        lists = pages.shape[1]
        logical = pages.clamp(min=0).long()
        row = torch.arange(rows, device=q.device)[:, None, None]
        head = torch.arange(lists, device=q.device)[:, None] // (lists // kv_heads)
        table = (page_table[row, logical] * kv_heads + head).flatten(0, 1).to(torch.int32)
        # Only a row's newest page can be open, and ascending lists have it last.
        last = logical.gather(2, (counts.long() - 1)[..., None])[..., 0]
        newest = (lengths[:, None] - 1) // size
        held = (counts * size - torch.where(last == newest, -lengths[:, None] % size, 0)).flatten()
        k_pages, v_pages = (x.view(-1, 1, size, dim) for x in (k_pages, v_pages))
        heads = query_heads // lists, 1
    steps = flashinfer.make(path, table, Heads(*heads, dim, size, q.dtype, scale), held.tolist())
    queries = q.reshape(-1, heads[0], dim)
    out = torch.full_like(queries, torch.nan)
    steps.attend(queries, Paged(k_pages, v_pages, table, held.to(torch.int32)), out)
    return out.view_as(q)
