"""The backends under test. Each test that asks for ``ops`` runs on every CPU backend that works on this machine.

Backends of a GPU run the same tests in tests/gpu.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from questbench import kernels
from questbench.kernels._ops import Ops


def on_cpu() -> list[str]:
    return [name for name in kernels.names() if kernels.load_class(name).device in ("cpu", "any")]


@pytest.fixture(params=on_cpu())
def ops(request: pytest.FixtureRequest) -> Ops:
    name: str = request.param
    if reason := kernels.available()[name]:
        pytest.skip(f"{name}: {reason}")
    return kernels.load(name)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads only cost time. Tests of threads ask for them, and the number is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
