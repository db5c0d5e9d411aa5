"""Linear layers of a decode step: which code runs them, and several that share an input as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from questbench.kernels import _linear


@dataclass
class Buffers:
    """Results of linear layers, kept from step to step; layers of one size share theirs."""

    rows: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self._kept: dict[int, Tensor] = {}

    def get(self, width: int) -> Tensor:
        """``[rows, width]``."""
        if width not in self._kept:
            self._kept[width] = torch.empty((self.rows, width), dtype=self.dtype)
        return self._kept[width]


class Projection:
    """``x [B, inputs]`` -> ``[B, outputs]``, the outputs of several modules side by side.

    Args:
        modules: ``nn.Linear`` or anything that stands in its place (quantised weights, adapters).
        buffers: where the compiled kernel writes; ``None`` keeps to torch. A result lasts until the next call of a
            projection of the same width.
    """

    def __init__(self, modules: Sequence[nn.Module], buffers: Buffers | None = None) -> None:
        self.modules = tuple(modules)
        self.path = "torch"
        """``compiled``, ``int8pack`` or ``torch``."""
        self._out: Tensor | None = None
        self._packed: list[tuple[Tensor, Tensor]] | None = None
        linears: list[Any] = list(self.modules)
        if buffers is not None and all(_is_int8(m) for m in self.modules):
            # torchao's own int8 product on the CPU first widens the weights: a sixth of the speed of torch's kernel.
            self._packed = [(m.weight.qdata, m.weight.scale.flatten().to(buffers.dtype)) for m in linears]
            self.path = "int8pack"
        plain = all(type(m) is nn.Linear and _linear.fits(m.weight, m.bias) for m in linears)
        small = buffers is not None and buffers.rows <= _linear.MOST_ROWS
        if buffers is not None and small and plain and _linear.unavailable() is None:
            self.path = "compiled"
            widths = [m.out_features for m in linears]
            self._out = buffers.get(sum(widths))
            parts = torch.split(self._out, widths, dim=1)
            weights = [(m.weight.detach(), None if m.bias is None else m.bias.detach()) for m in linears]
            self._jobs = [(*own, part) for own, part in zip(weights, parts, strict=True)]

    def __call__(self, x: Tensor) -> Tensor:
        """The products."""
        if self._packed is not None:
            x = x.contiguous()
            parts = [torch._weight_int8pack_mm(x, weight, scale) for weight, scale in self._packed]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if self._out is None:
            outs = [module(x) for module in self.modules]
            return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)
        x = x.contiguous()
        for weight, bias, out in self._jobs:
            _linear.linear(x, weight, bias, out)
        return self._out

    @property
    def weights(self) -> list[tuple[Tensor, Tensor | None]] | None:
        """Weights and bias of each module; ``None`` where other code than the compiled kernel reads them."""
        return None if self._out is None else [(weight, bias) for weight, bias, _ in self._jobs]

    @property
    def bytes(self) -> int:
        """Bytes of the weights that one call reads."""
        return sum(weight_bytes(module) for module in self.modules)


def _is_int8(module: nn.Module) -> bool:
    """A linear layer with torchao's symmetric 8-bit weights, one scale per output."""
    weight: Any = getattr(module, "weight", None)
    bias = getattr(module, "bias", None)
    if type(module) is not nn.Linear or type(weight).__name__ != "Int8Tensor" or bias is not None:
        return False
    one_scale = weight.scale.numel() == weight.qdata.shape[0]
    return bool(one_scale and weight.qdata.device.type == "cpu" and not bool(weight.zero_point.any()))


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, packed ones included."""
    found = [*module.parameters(), *module.buffers()]
    return sum(_stored(tensor) for tensor in {id(tensor): tensor for tensor in found}.values())


def _stored(tensor: Tensor) -> int:
    """Bytes that a tensor, or the parts of a tensor subclass, take."""
    flatten: Any = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.numel() * tensor.element_size()
    return sum(_stored(getattr(tensor, name)) for name in flatten()[0])
