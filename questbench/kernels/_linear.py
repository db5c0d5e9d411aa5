"""A linear layer for a few rows on the CPU, at the speed of memory: what a decode step spends most of its time on.

No op of the contract: backends are compared by attention, and every method shares the linear layers. torch's own
``linear`` reaches about half of the bandwidth for one row of bf16 or fp32 (``docs/e2e.md`` has the figures), so
that the weights would drown what a method saves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questbench.errors import PrerequisiteError
from questbench.kernels import _build

MOST_ROWS = 8
"""Rows of a batch up to which reading the weights is all that counts; beyond, torch's blocked products win."""
STORED = (torch.float32, torch.float16, torch.bfloat16)


def unavailable() -> str | None:
    """``None`` if the compiled kernel works on this machine, else why not. Never raises."""
    try:
        _build.load_cpu()
    except (PrerequisiteError, OSError) as error:
        return str(error)
    return None


def fits(weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether ``linear`` takes these weights: plain, contiguous, on the CPU, of a type that the kernels store."""
    plain = type(weight) in (Tensor, torch.nn.Parameter) and weight.device.type == "cpu"
    same = bias is None or (bias.dtype == weight.dtype and bias.is_contiguous())
    return plain and weight.dtype in STORED and weight.is_contiguous() and same


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, summed in fp32 and rounded once.

    A row's result depends neither on the number of threads nor on the other rows.

    Args:
        x: ``[B, inputs]``, contiguous, in the dtype of ``weight``.
        weight: ``[outputs, inputs]``, see :func:`fits`.
        bias: ``[outputs]``.
        out: ``[B, outputs]`` to write to, rows may be strided; a new tensor by default.

    Raises:
        ValueError: the shapes or types do not fit.
    """
    if x.dim() != 2 or x.shape[1] != weight.shape[1] or x.dtype != weight.dtype or not x.is_contiguous():
        raise ValueError(f"input {tuple(x.shape)} {x.dtype} does not fit weights {tuple(weight.shape)} {weight.dtype}")
    if out is None:
        out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype)
    elif out.shape != (x.shape[0], weight.shape[0]) or out.dtype != x.dtype or out.stride(1) != 1:
        raise ValueError(f"output {tuple(out.shape)} {out.dtype} does not fit weights {tuple(weight.shape)}")
    _build.load_cpu().linear(x, weight, bias, out, torch.get_num_threads())
    return out
