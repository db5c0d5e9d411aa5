"""Small kernels of the tests, compiled for the emulator once and kept in the cache."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import building
import pytest
import torch
from emulated import watched
from on_device import OnDevice

from questbench._paths import kernel_sources
from questbench.kernels import _build, _build_cuda

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "kernels"))  # the cases and checks of the other backends


@pytest.fixture(scope="session", params=["emulator", pytest.param("device", marks=pytest.mark.gpu)])
def basics(request: pytest.FixtureRequest) -> Any:
    """``basics.cu``: in the emulator, and on a device, which shows that the emulator does as CUDA does."""
    source = [HERE / "basics.cu", HERE / "basics_bind.cu"]
    if request.param == "device":
        return OnDevice(_build.loaded(_build_cuda.build_cuda(sources=source)))
    return _build.loaded(building.build_emulator(source))


@pytest.fixture(scope="session")
def faults() -> Any:
    return _build.loaded(building.build_emulator([HERE / "faults.cu"]))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ops() -> Any:
    """The CUDA backend in the emulator; every call runs under several schedules."""
    if not list((kernel_sources() / "cuda").glob("*.cu")):
        pytest.skip("kernels/cuda is empty")
    return watched(building.load_emulator())
