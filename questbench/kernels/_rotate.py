"""Queries turned by a number of positions on the CPU, compiled.

No op of the contract: a method that re-indexes positions is given a rotation, and this is one. It is one call where
torch takes a dozen, which are a third of a step over a small cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questbench.kernels import _build
from questbench.kernels._linear import STORED


def rotate(x: Tensor, delta: Tensor, frequency: Tensor) -> Tensor:
    """Turn the halves of the first ``2 P`` channels of every head; computed in fp32 and rounded once.

    Args:
        x: ``[B, H, D]``, contiguous, of a type that the kernels store.
        delta: ``[B]`` int32: positions to turn each row by.
        frequency: ``[P]`` fp32: the angle per position of each pair of channels ``(i, P + i)``.

    Raises:
        ValueError: the shapes do not fit, or the type of ``x`` is not stored.
        TypeError: another tensor has another type.
    """
    if x.dtype not in STORED:
        raise ValueError(f"the kernels store no {x.dtype}")
    out = torch.empty_like(x)
    _build.load_cpu().rotate(x, delta, frequency, out)
    return out
