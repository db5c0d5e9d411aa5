"""Libraries that nvcc made, for tests whose tensors lie on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class OnDevice:
    """The functions of a library that nvcc made, called with CPU tensors: they travel there and back."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def emulator_set_seed(self, seed: int) -> None:
        """The device has a schedule of its own."""

    def convert(self, *tensors: Tensor) -> None:
        """A function of the host."""
        self._module.convert(*tensors)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            there = [value.cuda() if isinstance(value, Tensor) else value for value in arguments]
            getattr(self._module, name)(*there)
            for value, moved in zip(arguments, there, strict=True):
                if isinstance(value, Tensor):
                    value.copy_(moved)

        return call
