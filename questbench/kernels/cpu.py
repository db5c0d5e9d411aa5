"""CPU backend: the C++ kernels in ``kernels/cpu`` as torch operators of the namespace ``questbench_cpu``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from questbench.errors import PrerequisiteError
from questbench.kernels import _build
from questbench.kernels._limits import Limits
from questbench.kernels._native import NativeOps, functions, register


class _Library:
    """The compiled kernels and the number of threads that torch uses."""

    def load(self) -> Any:
        return _build.load_cpu()

    def extra(self, op: str) -> Callable[[], tuple[int]]:
        del op
        return lambda: (torch.get_num_threads(),)


_EAGER = functions(_Library())
_operators = register("questbench_cpu", "CPU", _EAGER)


class CpuOps(NativeOps):
    """The ops and their fusion in C++."""

    limits = Limits(group=256, page_sizes=(1, 1024))  # kMaxGroup in vector.h, kChunk in attend.h

    def __init__(self) -> None:
        super().__init__(_EAGER, "questbench_cpu")

    def settings(self) -> dict[str, Any]:
        """What was chosen for this machine; compiles and measures on first use."""
        return _build.cpu()[1].facts()

    def unavailable(self) -> str | None:
        """The binding, and a compiler: what is in the cache is kept by the compiler it was made with."""
        if not _build.has_binding():
            return "the binding is not installed: pip install apache-tvm-ffi."
        try:
            _build.compiler()
        except PrerequisiteError as error:
            return f"{error.message} {error.hint}"
        return None
