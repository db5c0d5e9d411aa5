"""The backends that the tests of this folder run over, and the cases that each can have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import building
import pytest
import torch
from emulated import watched
from kernel_cases import DTYPES

from questbench import kernels
from questbench.kernels._limits import Limits
from questbench.kernels.cpu import CpuOps
from questbench.kernels.cuda import CudaOps

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Backend:
    """A backend under test, and the cases that it can have."""

    name: str
    limits: Limits
    dtypes: tuple[torch.dtype, ...]
    most: int
    """Entries of the longest rows: every one is carried out several times in the emulator."""

    def dtype(self, at: int) -> torch.dtype:
        """Its storage types in turn."""
        return self.dtypes[at % len(self.dtypes)]

    def long(self, entries: int) -> int:
        """As many entries, or fewer where they would take too long."""
        return min(entries, self.most)

    def dim(self, wanted: int) -> int:
        """This head dim, or the first that it has kernels for."""
        return wanted if not self.limits.head_dims or wanted in self.limits.head_dims else self.limits.head_dims[0]

    def load(self) -> Any:
        """Its ops over CPU tensors. Skips the test where it does not work."""
        if self.name == "emulated":
            return watched(building.load_emulator())
        if self.name == "cuda":
            from gpu_bodies import DEVICE, OnDevice, backend

            return OnDevice(backend(), DEVICE)
        if reason := kernels.available()[self.name]:
            pytest.skip(reason)
        return kernels.load(self.name)


BACKENDS = {
    one.name: one
    for one in (
        Backend("cpu", CpuOps.limits, tuple(DTYPES), 1 << 20),
        Backend("emulated", CudaOps.limits, HALVES, 150),
        Backend("cuda", CudaOps.limits, HALVES, 1 << 20),
    )
}
