"""Room for results that shows what was not written, and what was written beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

MARGIN = 512
PATTERN = torch.tensor([0xA6, 0x7F], dtype=torch.uint8)
POISON = torch.tensor([0xB5, 0x7F], dtype=torch.uint8)
"""NaN as fp32, fp16 and bf16; far outside of anything as an index."""


def _fill(memory: Tensor, pair: Tensor) -> None:
    memory.copy_(pair.repeat(-(-memory.numel() // 2))[: memory.numel()])


class GuardedRoom(TorchFunctionMode):
    """Within it, ``torch.empty`` gives poisoned memory between two margins that :meth:`check` looks at."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[tuple[Tensor, int]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is not torch.empty or torch.device(kwargs.get("device") or "cpu").type != "cpu":
            return function(*args, **kwargs)
        shape = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        size = torch.Size(shape).numel() * dtype.itemsize
        memory = torch.zeros(2 * MARGIN + size + 16, dtype=torch.uint8)
        start = MARGIN + -(memory.data_ptr() + MARGIN) % 16
        memory = memory[start - MARGIN : start + size + MARGIN]
        _fill(memory, PATTERN)
        _fill(memory[MARGIN : MARGIN + size], POISON)
        self._kept.append((memory, size))
        return memory[MARGIN : MARGIN + size].view(dtype).view(*shape)

    def check(self) -> None:
        """No margin was written to.

        Raises:
            AssertionError: one was.
        """
        for memory, size in self._kept:
            for margin in (memory[:MARGIN], memory[MARGIN + size :]):
                whole = margin[: margin.numel() // 2 * 2].view(-1, 2)
                assert (whole == PATTERN).all(), "a kernel wrote outside of its result"
        self._kept.clear()
