"""Where a decode loop stands in its cache, and how the layers of a cache go back to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from questbench.models._padding import seen_by_row
from questbench.models.hf_cache import MethodLayer, SparseCache
from questbench.models.window import WindowLayer


@dataclass(frozen=True)
class Mark:
    """A place in a generation that a loop can go back to."""

    tokens: Tensor
    places: Tensor
    columns: list[tuple[int, list[list[int]]]]
    """Per layer of the cache: columns seen, and of each part of it the entries held by each row."""


def held_by_part(layer: Any, seen: Sequence[int]) -> list[list[int]]:
    """Entries that each part of a layer holds in each row, padding apart."""
    if isinstance(layer, MethodLayer):
        return [[0]] if layer.store is None else [list(part.held) for part in layer.store.parts]
    columns = layer.held_columns if isinstance(layer, WindowLayer) else layer.keys.shape[2]
    return [[min(length, columns) for length in seen]]


def tokens_seen(cache: SparseCache, mask: Tensor | None) -> list[int]:
    """Tokens of each row so far, padding apart."""
    if any(isinstance(layer, MethodLayer) for layer in cache.layers):
        return seen_by_row(cache) or []
    rows = 0 if not cache.layers[0].is_initialized else cache.layers[0].keys.shape[0]
    return [cache.get_seq_length()] * rows if mask is None else mask.sum(1).tolist()


def go_back(layer: Any, columns: int, held: list[list[int]]) -> bool:
    """Whether a layer is again what it was when it had seen ``columns`` and held ``held`` entries."""
    if isinstance(layer, MethodLayer):
        layer.columns, whole = columns, layer.store is not None
        for part, most in zip(layer.store.parts if layer.store else (), held, strict=False):
            if part.reversible:
                part.rewind(most)
            whole &= part.reversible and part.method.step_mass != "sum"
        return whole
    if isinstance(layer, WindowLayer):
        return layer.rewind(columns, held[0])
    whole = bool(layer.keys.shape[2] == layer.cumulative_length)  # else the window has lost what stood before
    if whole:
        layer.keys, layer.values = layer.keys[:, :, :columns], layer.values[:, :, :columns]
    layer.cumulative_length = columns
    return whole
