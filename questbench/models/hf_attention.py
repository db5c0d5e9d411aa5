"""The attention function that transformers calls under the name ``questbench``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questbench.attention import PREFILL_CHUNK, Scoring, flash
from questbench.errors import PrerequisiteError, UsageError
from questbench.models.hf_cache import KVHandle

UNKNOWN = ("position_bias", "alibi", "block_indices", "indices", "score_mod", "sinks", "relative_position")
"""Arguments of other attention functions that change which entries count, or how much. Ours has no such thing."""


@torch.no_grad()
def questbench_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | KVHandle,
    value: Tensor | KVHandle,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over our pages, or densely over plain tensors (sliding-window layers).

    Args:
        query: ``[B, Hq, n, D]``.
        key, value: what the cache's ``update`` returned.
        attention_mask: ``[B, columns]`` bool, or ``None`` without padding.

    Returns:
        ``[B, n, Hq, D]`` and no weights.

    Raises:
        PrerequisiteError: the layer asks for attention of a kind that this function does not have.
    """
    asked = [name for name in UNKNOWN if kwargs.get(name) is not None]
    if asked:
        raise PrerequisiteError(f"{type(module).__name__} asks for attention with {', '.join(asked)}: not supported.")
    if kwargs.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise PrerequisiteError(f"{type(module).__name__} is not causal: not supported.", "Use a text decoder.")
    if module.training and dropout > 0:
        raise UsageError("questbench attention is for inference, and this model is in training.", "Call model.eval().")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    scoring = Scoring(scale, softcap or 0.0, None if s_aux is None else s_aux.detach().float())
    if isinstance(key, KVHandle):
        if sliding_window is not None:
            raise PrerequisiteError(f"Layer {key.layer.index} slides, although the configuration says full attention.")
        out = key.layer.attend(query, attention_mask, scoring)
    else:
        assert isinstance(value, Tensor)
        out = dense(query, key, value, attention_mask, sliding_window, scoring)
    return out.transpose(1, 2).contiguous(), None


def dense(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, window: int | None, scoring: Scoring
) -> Tensor:
    """Causal attention over plain tensors, within a window if there is one.

    Args:
        query: ``[B, Hq, n, D]``, the newest n of the m columns.
        keys, values: ``[B, Hk, m, D]``.
        mask: ``[B, m]`` bool, false on padding.
        window: columns that a query sees, its own included.

    Returns:
        ``[B, Hq, n, D]``; on padding it means nothing.
    """
    new, columns = query.shape[2], keys.shape[2]
    if mask is not None and mask.shape != (keys.shape[0], columns):
        raise UsageError(
            f"An attention mask of shape {tuple(mask.shape)} does not fit {columns} columns.",
            "Pass the 2D mask [batch, tokens] that the tokenizer returns, or none.",
        )
    if new == 1:
        return _step(query, keys, values, mask, window, scoring)
    padding = _padding(mask, keys.shape[0])
    if padding is None or not scoring.plain or not flash.usable(query, keys, values):
        return _masked(query, keys, values, mask, window, scoring)
    out = torch.zeros_like(query)
    for row, first in enumerate(padding):
        count = min(new, columns - first)
        if count:
            own = query[row, :, new - count :], keys[row, :, first:], values[row, :, first:]
            if window is None or columns - first <= window:
                out[row, :, new - count :] = flash.causal(*own, scoring.scale)[0]
            else:
                out[row, :, new - count :] = flash.windowed(*own, window, scoring.scale)
    return out


def _padding(mask: Tensor | None, rows: int) -> list[int] | None:
    """Columns at the left of each row that are padding; ``None`` where padding lies elsewhere, or on a GPU."""
    if mask is None:
        return [0] * rows
    if mask.device.type != "cpu":
        return None  # asking it would cost a wait
    seen = mask.bool()
    if bool((seen[:, :-1] & ~seen[:, 1:]).any()):
        return None
    return (mask.shape[1] - seen.sum(1)).tolist()


def _step(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, window: int | None, scoring: Scoring
) -> Tensor:
    """One query per row: only padding is hidden from it."""
    low = 0 if window is None else max(0, keys.shape[2] - window)
    seen = None if mask is None else mask[:, None, None, low:].bool()
    if seen is not None:
        # A query on padding sees itself, lest its softmax be over nothing.
        seen = seen | (torch.arange(low + 1, keys.shape[2] + 1, device=query.device) == keys.shape[2])
    keys, values = keys[:, :, low:], values[:, :, low:]
    if not scoring.plain:
        return _attend(query, keys, values, seen, scoring)
    # The query heads of a KV head as rows of one product: a product of one row of bf16 takes ten times as long.
    rows = query.reshape(query.shape[0], keys.shape[1], -1, query.shape[3])
    out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=seen, scale=scoring.scale)
    return out.reshape(*query.shape[:3], -1)


def _masked(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, window: int | None, scoring: Scoring
) -> Tensor:
    """In blocks of rows under masks: what no kernel has without one."""
    new, columns = query.shape[2], keys.shape[2]
    out = torch.empty((*query.shape[:3], values.shape[3]), dtype=query.dtype, device=query.device)
    for start in range(0, new, PREFILL_CHUNK):
        rows = slice(start, min(start + PREFILL_CHUNK, new))
        own = torch.arange(rows.start, rows.stop, device=query.device) + columns - new
        low = 0 if window is None else max(0, columns - new + rows.start - window + 1)
        high = columns - new + rows.stop
        place = torch.arange(low, high, device=query.device)
        seen = place <= own[:, None]
        if window is not None:
            seen &= place > own[:, None] - window
        seen = seen.expand(query.shape[0], 1, -1, -1)
        if mask is not None:
            # A query on padding sees itself, lest its softmax be over nothing.
            seen = seen & mask[:, None, None, low:high].bool() | (place == own[:, None])
        out[:, :, rows] = _attend(query[:, :, rows], keys[:, :, low:high], values[:, :, low:high], seen, scoring)
    return out


def _attend(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, scoring: Scoring) -> Tensor:
    """Attention under a mask ``[B, 1, n, m]``, or of everything."""
    if scoring.plain:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=scoring.scale, enable_gqa=True)
    group = query.shape[1] // keys.shape[1]
    wide_k, wide_v = (x.float().repeat_interleave(group, dim=1) for x in (keys, values))
    logits = query.float() @ wide_k.transpose(2, 3) * scoring.scale
    if scoring.softcap > 0:
        logits = scoring.softcap * torch.tanh(logits / scoring.softcap)
    if seen is not None:
        logits = logits.masked_fill(~seen, -torch.inf)
    if scoring.sinks is not None:
        sink = scoring.sinks[:, None, None].expand(query.shape[0], -1, query.shape[2], 1)
        logits = torch.cat([logits, sink], dim=-1)
    probabilities = torch.softmax(logits, dim=-1)[..., : keys.shape[2]]
    return (probabilities @ wide_v).to(query.dtype)
