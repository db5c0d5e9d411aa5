"""Keys in four bits per channel, one entry and KV head at a time: k ~ low + step * code, codes 0 to 15.

    low = min_d k[d]      step = (max_d k[d] - low) / 15      code[d] = round((k[d] - low) / step), half to even

Codes stand by slot: ``codes`` ``[B, Hk, C, bytes]`` uint8 and ``ranges`` ``[B, Hk, C, 2]`` fp32 (step, low). 32
channels are 16 bytes: byte i of them holds channel i in its low half and channel 16 + i in its high half; channels past
the head dim are 0. An entry whose range is no finite number has NaN for both, and so has every logit estimated from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # methods predict bytes with this file, and are listed where torch is not wanted
    import torch
    from torch import Tensor

CHANNELS = 32
"""Channels whose codes stand together."""


def code_bytes(head_dim: int) -> int:
    """Bytes of one entry's codes of one KV head."""
    return -(-head_dim // CHANNELS) * CHANNELS // 2


def empty_codes(rows: int, kv_heads: int, slots: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Codes and ranges for so many slots, zeros."""
    import torch

    codes = torch.zeros((rows, kv_heads, slots, code_bytes(head_dim)), dtype=torch.uint8, device=device)
    return codes, torch.zeros((rows, kv_heads, slots, 2), dtype=torch.float32, device=device)


def quantized(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Codes ``[..., bytes]`` and ranges ``[..., 2]`` of keys ``[..., D]``, which are fp32 or float64."""
    import torch

    low, high = keys.amin(-1, keepdim=True), keys.amax(-1, keepdim=True)
    step = (high - low) / torch.full_like(low, 15)
    defined = keys.isfinite().all(-1, keepdim=True) & step.isfinite()
    values = ((keys - low) / torch.where(step > 0, step, 1)).round().clamp(max=15)
    whole = torch.where(defined, values, 0).to(torch.uint8)
    padded = torch.nn.functional.pad(whole, (0, -keys.shape[-1] % CHANNELS)).unflatten(-1, (-1, 2, CHANNELS // 2))
    codes = (padded[..., 0, :] | padded[..., 1, :] << 4).flatten(-2)
    return codes, torch.where(defined, torch.cat([step, low], dim=-1), torch.nan)


def widened_codes(codes: Tensor, head_dim: int) -> Tensor:
    """The codes themselves, ``[..., D]`` uint8, from their bytes."""
    import torch

    blocks = codes.unflatten(-1, (-1, 1, CHANNELS // 2))
    return torch.cat([blocks & 15, blocks >> 4], dim=-2).flatten(-3)[..., :head_dim]
