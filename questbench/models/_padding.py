"""The attention mask of a text that goes on behind a filled cache: which earlier columns are padding."""

from __future__ import annotations

import torch
from torch import Tensor

from questbench.errors import UsageError
from questbench.models.hf_cache import MethodLayer, SparseCache


def seen_by_row(cache: SparseCache) -> list[int] | None:
    """Tokens of each row so far, padding apart; ``None`` where no layer knows, or the cache is empty."""
    stores = [layer.store for layer in cache.layers if isinstance(layer, MethodLayer)]
    return None if not stores or stores[0] is None else list(stores[0].seen)


def whole_mask(cache: SparseCache, mask: Tensor | None, rows: int, new: int) -> Tensor | None:
    """The mask ``[B, seen + n]`` of all columns, from that of the new ones or of all; ``None`` if nothing is padding.

    Layers of full attention need to know only how long each row is, which their pages tell. Sliding-window layers keep
    the padding of earlier columns among their entries: then the caller must say where it is.

    Raises:
        UsageError: the mask fits neither the new columns nor all, or does not agree with the cache.
    """
    columns, seen = cache.get_seq_length(), seen_by_row(cache)
    if mask is not None and (mask.dim() != 2 or tuple(mask.shape) not in ((rows, new), (rows, columns + new))):
        shapes = f"[{rows}, {new}]" + (f" or [{rows}, {columns + new}]" if columns else "")
        raise UsageError(
            f"A mask of shape {list(mask.shape)} does not fit this prompt, which takes {shapes}.",
            "Pass the mask that the tokenizer returns.",
        )
    padded = seen is not None and any(length != columns for length in seen)
    if columns == 0 or (mask is None and not padded):
        return mask
    if mask is not None and mask.shape[1] != new:
        earlier = mask[:, :columns].bool()
        if seen is not None and earlier.sum(1).tolist() != seen:
            raise UsageError(
                f"The mask counts {earlier.sum(1).tolist()} earlier tokens per row, but the cache has seen {seen}.",
                "Pass the mask of the very texts that the cache was filled with.",
            )
        return mask
    if padded and any(getattr(layer, "is_sliding", False) for layer in cache.layers):
        raise UsageError(
            "Earlier columns of this cache hold padding, and the model's sliding-window layers need to know where.",
            f"Pass the mask of all {columns + new} columns: torch.cat([earlier_mask, mask], dim=1).",
        )
    device = None if mask is None else mask.device
    lengths = torch.tensor(seen if seen is not None else [columns] * rows, device=device)
    if len(lengths) != rows:
        raise UsageError(
            f"This cache holds {len(lengths)} rows, but the batch has {rows}.", "Build a new cache for a new batch."
        )
    before = torch.arange(columns, device=device) >= columns - lengths[:, None]
    after = torch.ones((rows, new), dtype=torch.bool) if mask is None else mask.bool()
    return torch.cat([before, after], dim=1).long()
