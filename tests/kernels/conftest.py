"""The backends under test. Each test that asks for ``ops`` runs on every backend that works on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from questbench import kernels
from questbench.kernels._ops import Ops


@pytest.fixture(params=kernels.names())
def ops(request: pytest.FixtureRequest) -> Ops:
    name: str = request.param
    if reason := kernels.available()[name]:
        pytest.skip(f"{name}: {reason}")
    backend = kernels.load(name)
    if backend.device != "cpu":
        pytest.skip(f"{name}: these tests keep their tensors on the CPU")
    return backend


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads only cost time. Tests of threads ask for them, and the number is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
