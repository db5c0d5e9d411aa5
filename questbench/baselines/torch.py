"""PyTorch's dense attention: the fastest of scaled_dot_product_attention, matrix products and compiled flex_attention.

Under grouped-query attention its ways differ by a factor of ten. On a GPU keys and values are never stored once per
query head: its kernels read grouped heads, and memory is scarce.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from questbench.baselines import _flex, _ways
from questbench.baselines._base import Baseline, Still, Text, Ways, right
from questbench.baselines._ways import Way

FLEX = "flex_attention"


class Torch(Baseline):
    """What torch makes of keys and values that are stored contiguously."""

    verbs: ClassVar[tuple[str, ...]] = ("kernel",)

    def stores(self, group: int, device: str) -> int:
        """See :meth:`Baseline.stores`."""
        return group + 1 if device == "cpu" and group > 1 else 1

    def ways(self, text: Text) -> Ways:
        """See :meth:`Baseline.ways`."""
        rows, heads, dim = text.queries.shape[1:]
        noise = text.noise
        ways, left_out = dict(_ways.UNGROUPED if heads == noise.kv_heads else _ways.GROUPED), {}
        compiled, why = _flex.flex(rows, heads, noise.kv_heads, dim, text.queries, text.compile_limit)
        if compiled is None:
            left_out[FLEX] = why
        else:
            ways[FLEX] = compiled
        stored = stores(text)
        arms = over(text, ways, stored)
        if heads != noise.kv_heads and noise.device == "cpu":
            arms |= over(text, {_ways.EXPANDED: _ways.plain}, stores(text, heads // noise.kv_heads))
        elif heads != noise.kv_heads:
            left_out[_ways.EXPANDED] = "not tried on a GPU: it stores keys and values once per query head"
        want = _ways.reference(text.queries[0], *stored[0], text.scale)
        return Ways(right(arms, want, left_out), left_out)


def over(text: Text, ways: Mapping[str, Way], stored: list[tuple[Tensor, Tensor]]) -> dict[str, Still]:
    """Ways as arms over copies of keys and values."""
    return {
        name: text.arm(lambda q, copy, way=way: way(q, *stored[copy], text.scale))  # type: ignore[misc]
        for name, way in ways.items()
    }


def stores(text: Text, group: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Contiguous keys and values of the whole text ``[B, Hk * group, T, D]`` in several copies.

    Args:
        group: how often each KV head is stored.
    """
    return [text.noise.whole(text.seq_len, group) for _ in range(text.copies)]
