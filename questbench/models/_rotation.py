"""The arithmetic of rotary embeddings that turn the halves of a head: ready angles, and a difference of positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from questbench.kernels import _rotate


def signed(sin: Tensor) -> Tensor:
    """A sine for :func:`by_halves`, which then needs no sign of its own."""
    first, second = sin.chunk(2, dim=-1)
    return torch.cat([-first, second], dim=-1)


def by_halves(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """``x`` turned by ready angles."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * signed_sin


def by_difference(frequency: Tensor, compiled: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """A rotation of heads ``[B, H, D]`` by a difference of positions ``[B]``, for methods that re-index positions.

    Args:
        frequency: ``[P]`` fp32: the angle per position of each pair of channels ``(i, P + i)``; 2 P may be less than D.
        compiled: by our kernels for the CPU, one call where torch needs a dozen.
    """
    if compiled:
        return lambda x, delta: _rotate.rotate(x.contiguous(), delta.to(torch.int32), frequency)
    # Of a negative angle the sine is negative and the cosine the same: what `signed` is for comes with the angles.
    both, turned = torch.cat([-frequency, frequency]), 2 * frequency.shape[0]

    def rotate(x: Tensor, delta: Tensor) -> Tensor:
        angle = delta[:, None, None] * both
        made = by_halves(x[..., :turned].float(), angle.cos(), angle.sin()).to(x.dtype)
        return made if turned == x.shape[-1] else torch.cat([made, x[..., turned:]], dim=-1)

    return rotate


def relative(
    theta: float, head_dim: int, device: str = "cpu", *, compiled: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """Llama's rotary embedding as :func:`by_difference`."""
    return by_difference(theta ** -(torch.arange(0, head_dim, 2, device=device) / head_dim), compiled)
