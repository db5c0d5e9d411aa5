"""The arithmetic of rotary embeddings that turn the halves of a head: ready angles, and a difference of positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def signed(sin: Tensor) -> Tensor:
    """A sine for :func:`by_halves`, which then needs no sign of its own."""
    first, second = sin.chunk(2, dim=-1)
    return torch.cat([-first, second], dim=-1)


def by_halves(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """``x`` turned by ready angles."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * signed_sin


def relative(theta: float, head_dim: int, device: str = "cpu") -> Callable[[Tensor, Tensor], Tensor]:
    """Llama's rotary embedding as a relative rotation, for methods that re-index positions."""
    half = theta ** -(torch.arange(0, head_dim, 2, device=device) / head_dim)
    # Of a negative angle the sine is negative and the cosine the same: what `signed` is for comes with the angles.
    frequency = torch.cat([-half, half])

    def rotate(x: Tensor, delta: Tensor) -> Tensor:
        angle = delta[:, None, None] * frequency
        return by_halves(x.float(), angle.cos(), angle.sin()).to(x.dtype)

    return rotate
