"""Sliding-window layers of a cache while a decode loop runs over them: entries in a ring of pages.

transformers makes new tensors of the whole window in every step. Here the new entry takes the slot of the oldest, and
our kernels read the pages, each row as many entries as it has. To transformers the layer is what it was: keys and
values in order, which are made anew when they are asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicSlidingWindowLayer

from questbench._memory import empty
from questbench.attention import Scoring
from questbench.errors import UsageError
from questbench.kernels._ops import Ops
from questbench.kernels._paged import Paged


class Ring:
    """The newest ``window`` entries of each row.

    Args:
        keys, values: ``[B, Hk, n, D]``, of which the last ``held[b]`` of a row are its own, fewer than ``window``.
        window: entries that a query sees, its own included.
        page_size: entries per page.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, held: Sequence[int], window: int, page_size: int, ops: Ops
    ) -> None:
        self.window, self.held, self.columns, self._ops = window, list(held), keys.shape[2], ops
        rows, kv_heads, _, head_dim = keys.shape
        pages = -(-window // page_size)
        shape = (rows * pages, kv_heads, page_size, head_dim)
        k, v = (empty(shape, keys.dtype, keys.device) for _ in "kv")
        table = torch.arange(rows * pages, dtype=torch.int32, device=keys.device).view(rows, pages)
        self._next = torch.zeros(rows, dtype=torch.int32, device=keys.device)
        """``[B]``: slot of the entry to come."""
        self._slots = [0] * rows  # the same, for the host
        self._written, self._read = Paged(k, v, table, self._next), Paged(k, v, table, torch.zeros_like(self._next))
        ops.append(keys, values, self._written, torch.tensor(self.held, dtype=torch.int32, device=keys.device))
        self._slots = list(self.held)
        self._count()

    def step(self, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """Store an entry ``[B, Hk, 1, D]`` per row and attend ``[B, Hq, D]`` to all that the window holds."""
        if self.window in self._slots:
            self._slots = [slot % self.window for slot in self._slots]
            self._next.remainder_(self.window)
        self._ops.append(k, v, self._written, None)
        self._slots = [slot + 1 for slot in self._slots]
        self.columns += 1
        if min(self.held) < self.window:
            self.held = [min(held + 1, self.window) for held in self.held]
            self._count()
        return self._ops.attend(q.contiguous(), self._read, scoring.scale, softcap=scoring.softcap, sinks=scoring.sinks)

    def rewind(self, held: Sequence[int], columns: int) -> None:
        """Forget the newest entries, so that ``held[b]`` are left: nothing may have taken another entry's slot."""
        self.held = [min(own, most) for own, most in zip(self.held, held, strict=True)]
        self._slots, self.columns = list(self.held), columns
        self._next.copy_(torch.tensor(self._slots, dtype=torch.int32))
        self._count()

    def in_order(self, width: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, Hk, width, D]``, oldest first, at the right; zeros where a row has fewer."""
        paged = self._read
        made = []
        for stored in (paged.k, paged.v):
            out = stored.new_zeros((len(self.held), paged.kv_heads, width, stored.shape[3]))
            for row, (held, after) in enumerate(zip(self.held, self._slots, strict=True)):
                count = min(held, width)
                order = torch.arange(after - count, after, device=stored.device) % self.window
                entries = stored[paged.table[row].long()].transpose(0, 1).flatten(1, 2)
                out[row, :, width - count :] = entries[:, order]
            made.append(out)
        return made[0], made[1]

    def _count(self) -> None:
        self._read.lengths.copy_(torch.tensor(self.held, dtype=torch.int32))


class WindowLayer(DynamicSlidingWindowLayer):  # type: ignore[misc]
    """A sliding-window layer of transformers that keeps a ring while only :meth:`step` is called.

    Args:
        layer: whose state it takes over.
        page_size, ops: of the ring.
    """

    cumulative_length: int
    """Columns that the layer has seen, as transformers counts them."""

    def __init__(self, layer: DynamicSlidingWindowLayer, page_size: int, ops: Ops) -> None:
        self._ring: Ring | None = None
        self._plain: tuple[Any, Any] = (layer.keys, layer.values)
        kept = {name: value for name, value in vars(layer).items() if name not in ("keys", "values")}
        self.__dict__.update(kept)
        self._page_size, self._ops = page_size, ops

    @property
    def keys(self) -> Any:
        """``[B, Hk, n, D]``: the newest entries that the next query sees, padding at the left."""
        return self._plain[0] if self._ring is None else self._ordered()[0]

    @keys.setter
    def keys(self, given: Any) -> None:
        self._plain = given, self._settled()[1]

    @property
    def values(self) -> Any:
        """As :attr:`keys`."""
        return self._plain[1] if self._ring is None else self._ordered()[1]

    @values.setter
    def values(self, given: Any) -> None:
        self._plain = self._settled()[0], given

    @property
    def held_columns(self) -> int:
        """Columns of :attr:`keys`."""
        if self._ring is None:
            return int(self._plain[0].shape[2])
        return min(self._ring.columns, int(self.sliding_window) - 1)

    def step(self, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, places: Tensor) -> Tensor:
        """One entry ``[B, Hk, 1, D]`` and one query ``[B, Hq, D]`` per row: the output ``[B, Hq, D]``.

        Args:
            places: ``[B, 1]``: tokens of each row before this one.
        """
        if self._ring is None:
            keys, values = self._plain
            own = [min(seen, keys.shape[2]) for seen in places[:, 0].tolist()]
            self._ring = Ring(keys, values, own, self.sliding_window, self._page_size, self._ops)
            self._plain = None, None
        self.cumulative_length += 1
        return self._ring.step(q, k, v, scoring)

    def rewind(self, columns: int, held: Sequence[int]) -> bool:
        """Go back to where ``columns`` were seen and ``held`` entries of each row were its own.

        Returns:
            Whether all is as it was: nothing has been dropped. Else what the window holds stays.
        """
        kept = self._plain[0].shape[2] if self._ring is None else self._ring.columns
        whole = bool(kept == self.cumulative_length < self.sliding_window)
        if whole and self._ring is not None:
            self._ring.rewind(held, columns)
        elif whole:
            keys, values = self._plain
            self._plain = keys[:, :, :columns], values[:, :, :columns]
        self.cumulative_length = columns
        return whole

    def _ordered(self) -> tuple[Tensor, Tensor]:
        assert self._ring is not None
        return self._ring.in_order(self.held_columns)

    def _settled(self) -> tuple[Any, Any]:
        """Keys and values as tensors, which the layer consists of from now on."""
        if self._ring is not None:
            self._plain, self._ring = self._ordered(), None
        return self._plain

    def __copy__(self) -> WindowLayer:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        if self._ring is not None:  # a ring is written to, and belongs to one layer
            twin.__dict__.update(_plain=self._ordered(), _ring=None)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> WindowLayer:
        twin = copy.copy(self)
        twin._plain = copy.deepcopy(twin._plain, memo)
        return twin


def hold_windows(cache: Cache) -> None:
    """Let sliding-window layers of a cache of ``build_cache`` keep rings, where the backend has kernels for them."""
    settings = cache.settings
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer and layer.is_initialized and _fits(layer, settings):
            cache.layers[index] = WindowLayer(layer, settings.page_size, settings.ops)


def _fits(layer: DynamicSlidingWindowLayer, settings: Any) -> bool:
    _, kv_heads, _, head_dim = layer.keys.shape
    try:
        settings.ops.limits.check(
            settings.ops.name, query_heads=kv_heads, kv_heads=kv_heads, head_dim=head_dim, page_size=settings.page_size
        )
    except UsageError:
        return False
    return bool(layer.sliding_window > 1 and not layer.record_past)
