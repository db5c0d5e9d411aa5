"""A layer cache whose decode step is the same device operations every time, so that a CUDA graph can hold it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from questbench.cache import LayerCache
from questbench.errors import UsageError


class StaticLayer(LayerCache):
    """Takes over a :class:`LayerCache` after its prefill; lengths and positions live on the device from then on.

    Nothing in a step asks the host how long a row is: pages for all steps are owned ahead, the page table spans them,
    and the new entry's slot is read from ``lengths``. The host follows by :meth:`advance`.
    """

    now: Tensor
    """``[B]`` int32: the text's length per row."""

    @classmethod
    def take(cls, layer: LayerCache, steps: int) -> StaticLayer:
        """The same entries, with room for ``steps`` more; ``layer`` must not be used afterwards, nor its pool grow.

        Raises:
            UsageError: the method has still to drop many entries at once, which a step of fixed size cannot do.
        """
        keep = layer.method.forget()
        if keep is not None and max(layer.held) > keep.entries:
            raise UsageError(
                f"{layer.method.name} holds {max(layer.held)} entries and keeps {keep.entries}: it has to drop first.",
                "Call end_prefill(), or make its first step outside the graph.",
            )
        taken = object.__new__(cls)
        taken.__dict__.update(layer.__dict__)
        for row, held in enumerate(layer.held):
            taken._make_room(row, steps if keep is None else min(steps, keep.entries + 1 - held))
        if keep is not None:  # in-place eviction writes to any page; growth to the newest, which is made room for above
            taken._unshare()
        taken.pool.fixed = True
        taken.now = torch.tensor(layer.seen, dtype=torch.int32, device=layer.device)
        return taken

    def lag(self) -> Tensor | None:
        """See :meth:`LayerCache.lag`; 0 for rows that are whole, since the device is not asked."""
        return self.lengths - self.now

    def append(self, k: Tensor, v: Tensor, new: Sequence[int] | None = None) -> None:
        """Store one entry ``[B, Hk, 1, D]`` per row."""
        slot = self.lengths.long()[:, None, None].expand(-1, self.kv_heads, 1)
        if self.positions is not None:
            self.positions.scatter_(2, slot, self.now[:, None, None].expand(-1, self.kv_heads, 1))
        if self.mass is not None:
            self.mass.scatter_(2, slot, 0.0)
        self.ops.append(k, v, self.paged)
        self.now += 1

    def forget(self) -> None:
        """Drop at most one entry per KV head; rows that fit are left alone by the op itself."""
        keep = self.method.forget()
        if keep is None or self.positions is None:
            return
        self.ops.evict(
            self.paged,
            self.positions,
            self.mass if keep.by == "mass" else None,
            capacity=keep.entries,
            sinks=keep.sinks,
            recent=keep.recent,
            shared=keep.shared,
        )

    def rewind(self, held: int | Sequence[int]) -> None:
        """See :meth:`LayerCache.rewind`."""
        super().rewind(held)
        self.now.copy_(torch.tensor(self.seen, dtype=torch.int32))

    def advance(self) -> None:
        """The host notes that one step was made."""
        keep = self.method.forget()
        self.seen = [seen + 1 for seen in self.seen]
        self.held = [held + 1 if keep is None else min(held + 1, keep.entries) for held in self.held]
