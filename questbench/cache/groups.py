"""A layer as its method wants it stored: in one cache, or in several, each with some of the KV heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from questbench.cache.layer import LayerCache
from questbench.cache.tail import of_heads
from questbench.kernels._ops import Ops
from questbench.methods._base import CacheShape, HeadGroup, Method


class GroupedLayer:
    """Caches of one layer that differ in their KV heads and in what they keep; together they are one to its user.

    Args:
        method: the method of the whole layer.
        shape: of the whole layer.
        heads: the KV heads of each cache; every head of the layer in one of them.
        parts: the caches.
    """

    def __init__(
        self, method: Method, shape: CacheShape, heads: Sequence[tuple[int, ...]], parts: Sequence[LayerCache]
    ) -> None:
        self.method, self.shape, self.parts = method, shape, tuple(parts)
        self.index, self.kv_heads, self.page_size = shape.index, shape.kv_heads, shape.page_size
        order = [head for group in heads for head in group]
        device = self.parts[0].device
        self.heads = [torch.tensor(group, device=device) for group in heads]
        self._place = torch.tensor(order, device=device).argsort()

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return self.parts[0].rows

    @property
    def seen(self) -> list[int]:
        """Tokens of each row's text."""
        return self.parts[0].seen

    @property
    def steps(self) -> int:
        """Decode steps since the prefill."""
        return self.parts[0].steps

    @property
    def whole(self) -> bool:
        """Whether no part has dropped anything."""
        return all(part.whole for part in self.parts)

    @property
    def bytes(self) -> tuple[int, int]:
        """See :attr:`LayerCache.bytes`."""
        stored, bounds = zip(*(part.bytes for part in self.parts), strict=True)
        return sum(stored), sum(bounds)

    def resident(self, row: int) -> float:
        """Entries that a KV head holds, mean over heads."""
        return sum(part.held[row] * part.kv_heads for part in self.parts) / self.kv_heads

    def places(self, row: int) -> Tensor | None:
        """``[Hk, slots]``: text positions of a row's slots, -1 in what is not used; ``None`` if they are the slots."""
        if all(part.positions is None for part in self.parts):
            return None
        found, widest = [], max(part.held[row] for part in self.parts)
        for part in self.parts:
            own = part.places(row)
            if own is None:
                own = torch.arange(part.held[row], device=part.device).expand(part.kv_heads, -1)
            found.append(F.pad(own.long(), (0, widest - own.shape[1]), value=-1))
        return torch.cat(found)[self._place]

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[B, H, ...]``, of query or KV heads, by parts."""
        return tuple(of_heads(x, heads, self.kv_heads) for heads in self.heads)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """What :meth:`split` has taken apart; shorter rows are filled up with zeros."""
        widest = max(part.shape[-1] for part in parts)
        even = [x if x.shape[-1] == widest else F.pad(x, (0, widest - x.shape[-1])) for x in parts]  # padding copies
        grouped = [part.unflatten(1, (len(heads), -1)) for part, heads in zip(even, self.heads, strict=True)]
        return torch.cat(grouped, dim=1).index_select(1, self._place).flatten(1, 2)

    def append(self, k: Tensor, v: Tensor, new: Sequence[int] | None = None) -> None:
        """See :meth:`LayerCache.append`."""
        for part, own_k, own_v in zip(self.parts, self.split(k), self.split(v), strict=True):
            part.append(own_k, own_v, new)

    def end_prefill(self) -> None:
        """See :meth:`LayerCache.end_prefill`."""
        for part in self.parts:
            part.end_prefill()

    def forget_prompt(self) -> None:
        """See :meth:`LayerCache.forget_prompt`."""
        for part in self.parts:
            part.forget_prompt()

    def select_rows(self, rows: Tensor) -> None:
        """See :meth:`LayerCache.select_rows`."""
        for part in self.parts:
            part.select_rows(rows)

    def release(self) -> None:
        """See :meth:`LayerCache.release`."""
        for part in self.parts:
            part.release()


Layer = LayerCache | GroupedLayer


def make_layer(
    method: Method, ops: Ops, shape: CacheShape, *, capacity: int | Callable[[Method], int] = 0, **options: Any
) -> Layer:
    """An empty cache of one layer, stored as its method wants it.

    Args:
        shape: of the whole layer, and which one it is.
        capacity: entries per row to allocate ahead, in all groups or by the group's method.
        options: of :class:`LayerCache`: rows, dtype, device, rotate, bounds.

    Raises:
        UsageError: the method's parameters, or the backend, do not fit the layer.
    """
    groups = method.head_groups(shape)
    parts = [
        LayerCache(
            group.method,
            ops,
            capacity=capacity(group.method) if callable(capacity) else capacity,
            query_heads=own.query_heads,
            kv_heads=own.kv_heads,
            head_dim=own.head_dim,
            page_size=own.page_size,
            index=own.index,
            layers=own.layers,
            **options,
        )
        for group, own in ((group, shape.part(len(group.heads))) for group in groups)
    ]
    return parts[0] if len(parts) == 1 else GroupedLayer(method, shape, [group.heads for group in groups], parts)


def fork_layer(layer: Layer, method: Method, *, page_size: int | None = None) -> Layer:
    """A cache for ``method`` that starts from what another one holds; see :meth:`LayerCache.fork`.

    Groups of heads share no pages with a cache of all heads: their entries are copied.

    Raises:
        ValueError: the other cache is stored in groups of heads, and ``method`` wants others.
    """
    shape = dataclasses.replace(layer.shape, page_size=page_size or layer.page_size)
    groups = method.head_groups(shape)
    if isinstance(layer, GroupedLayer):
        if [list(group.heads) for group in groups] != [heads.tolist() for heads in layer.heads]:
            raise ValueError(
                f"a cache of {layer.method.name} is stored in groups of heads: fork it for a method of the same groups"
            )
        parts = [part.fork(own.method, page_size=page_size) for part, own in zip(layer.parts, groups, strict=True)]
        return GroupedLayer(method, shape, [group.heads for group in groups], parts)
    if len(groups) == 1:
        return layer.fork(groups[0].method, page_size=page_size)
    parts = [_fork_heads(layer, group, shape.part(len(group.heads))) for group in groups]
    return GroupedLayer(method, shape, [group.heads for group in groups], parts)


def _fork_heads(layer: LayerCache, group: HeadGroup, shape: CacheShape) -> LayerCache:
    """A cache of some KV heads of a layer, with copies of their entries."""
    heads = torch.tensor(group.heads, device=layer.device)
    twin = layer.sibling(group.method, shape)
    twin.copy_entries([(k[heads], v[heads]) for k, v in map(layer.gather, range(layer.rows))])
    twin.inherit(layer, heads)
    twin.state = group.method.start(twin)
    return twin
