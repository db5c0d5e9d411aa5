"""Prompts in 16 bits on a processor that does not multiply 16 bits: linear layers widen their weights while they run.

torch has no fast product there and takes several times as long as in fp32. Products of 16 bits are exact in fp32; they
are summed there, and the result is rounded to 16 bits once.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questbench.kernels._linear import MOST_ROWS

AT_ONCE = 1 << 23
"""Weights that are widened at once: 32 MiB of fp32."""


@functools.cache
def emulated(dtype: torch.dtype) -> bool:
    """Whether torch multiplies matrices of this dtype without help from this processor."""
    asked = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype not in asked or not torch.backends.mkldnn.is_available():
        return False
    supported = getattr(torch.ops.mkldnn, asked[dtype], None)
    return supported is not None and not supported()


@contextlib.contextmanager
def widened(model: nn.Module, dtype: torch.dtype, rows: int) -> Iterator[None]:
    """Within it, plain linear layers of ``dtype`` on the CPU compute in fp32 where that is the faster way.

    Args:
        rows: tokens of the forward to come. For a few of them reading the weights is all that counts.
    """
    changed: list[Any] = []
    if rows > MOST_ROWS and emulated(dtype):
        changed = [module for module in model.modules() if _fits(module, dtype)]
    for module in changed:
        module.forward = functools.partial(_linear, module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _fits(module: nn.Module, dtype: torch.dtype) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    return type(weight.data) is Tensor and weight.dtype == dtype and weight.device.type == "cpu"


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    weight, bias = module.weight, module.bias
    if x.numel() // x.shape[-1] <= MOST_ROWS or x.dtype != weight.dtype:
        return F.linear(x, weight, bias)
    wide, out = x.float(), torch.empty((*x.shape[:-1], module.out_features), dtype=x.dtype)
    step = max(1, AT_ONCE // module.in_features)
    for low in range(0, module.out_features, step):
        part = slice(low, min(low + step, module.out_features))
        out[..., part] = F.linear(wide, weight[part].float(), None if bias is None else bias[part].float())
    return out
