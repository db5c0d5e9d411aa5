"""The last queries of a prompt, whose attention some methods judge by. They are known only when the prompt ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tail:
    """Queries of each row, the newest at the right."""

    q: Tensor
    """``[B, Hq, n, D]``."""
    valid: tuple[int, ...]
    """How many of a row's are its own; those before are padding."""

    @classmethod
    def of(cls, earlier: Tail | None, q: Tensor, new: Sequence[int], most: int) -> Tail:
        """The last ``most`` queries of a prompt that goes on.

        Args:
            earlier: those of its earlier part.
            q: ``[B, Hq, n, D]``, of which the last ``new[b]`` of a row are valid.
        """
        known = (0,) * len(new) if earlier is None else earlier.valid
        whole = q if earlier is None else torch.cat([earlier.q, q], dim=2)
        width = min(most, whole.shape[2])
        valid = tuple(min(width, old + count) for old, count in zip(known, new, strict=True))
        return cls(whole[:, :, whole.shape[2] - width :].clone(), valid)

    def select(self, rows: list[int]) -> Tail:
        """Row i becomes the old row ``rows[i]``."""
        return Tail(self.q[torch.tensor(rows, device=self.q.device)], tuple(self.valid[row] for row in rows))

    def part(self, heads: Tensor, kv_heads: int) -> Tail:
        """The queries that read some of the KV heads."""
        return Tail(of_heads(self.q, heads, kv_heads), self.valid)


def of_heads(x: Tensor, heads: Tensor, kv_heads: int) -> Tensor:
    """Of ``[B, H, ...]``, what belongs to some of ``kv_heads`` KV heads; H counts query or KV heads."""
    found: Tensor = x.unflatten(1, (kv_heads, -1)).index_select(1, heads).flatten(1, 2)
    return found
