"""Small kernels of the tests, compiled for the emulator once and kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from questbench.kernels import _build_cuda

HERE = Path(__file__).resolve().parent


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


@pytest.fixture(scope="session", params=["emulator", pytest.param("device", marks=pytest.mark.gpu)])
def basics(request: pytest.FixtureRequest) -> Any:
    """``basics.cu``: in the emulator, and on a device, which shows that the emulator does as CUDA does."""
    source = [HERE / "basics.cu"]
    if request.param == "device":
        return OnDevice(_build_cuda._load(_build_cuda.build_cuda(sources=source)))
    return _build_cuda._load(_build_cuda.build_emulator(source))


@pytest.fixture(scope="session")
def faults() -> Any:
    return _build_cuda._load(_build_cuda.build_emulator([HERE / "faults.cu"]))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
