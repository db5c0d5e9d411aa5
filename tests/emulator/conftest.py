"""Small kernels of the tests, compiled for the emulator once and kept in the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from questbench.kernels import _build_cuda

HERE = Path(__file__).resolve().parent
SEEDS = range(8)
"""Schedules; 0 is the one in order. A mistake must show under one of them, a right kernel is right under all."""


def compiled(name: str) -> Any:
    """The functions of ``tests/emulator/NAME.cu``."""
    return _build_cuda._load(_build_cuda.build_emulator([HERE / f"{name}.cu"]))


@pytest.fixture(scope="session")
def basics() -> Any:
    return compiled("basics")


@pytest.fixture(scope="session")
def faults() -> Any:
    return compiled("faults")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
