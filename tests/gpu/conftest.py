"""Fixtures of the GPU tests. Bodies of CPU tests are imported from the folders beside this one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
for _folder in ("kernels", "models", "baselines", "experiments", "gpu"):
    sys.path.insert(0, str(TESTS / _folder))

from gpu_bodies import DEVICE, OnDevice, backend  # noqa: E402

from questbench.kernels._ops import Ops  # noqa: E402


@pytest.fixture
def ops() -> Ops:
    """The device's backend behind CPU tensors: what the bodies of tests/kernels expect."""
    return OnDevice(backend(), DEVICE)


@pytest.fixture
def there() -> Ops:
    """The device's backend as it is, for tensors that live there."""
    return backend()
