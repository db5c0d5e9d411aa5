"""Compile kernels for the block emulator of ``kernels/emulator``, which runs them on the CPU: a tool of tests, slow."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from questbench._paths import CHECKOUT
from questbench.kernels import _build, _build_cuda
from questbench.kernels._build import BuildResult

LIBRARY = "libquestbench_emulator.so"
# Kernels pun types as CUDA allows. Two emulators in one process must not share their state (unique symbols would).
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fno-strict-aliasing", "-fno-gnu-unique", "-Wno-unknown-pragmas"]
SOURCES = CHECKOUT / "kernels"
"""The emulator is not in the wheel."""


def build_emulator(sources: Sequence[Path] | None = None, root: Path | None = None) -> BuildResult:
    """Compile kernels for the emulator if they are not in the cache.

    Args:
        sources: ``.cu`` files; ``None``: all of ``cuda/`` under ``root``.
        root: folder of kernel sources, for headers and the emulator too; ``None``: that of the checkout.

    Raises:
        PrerequisiteError: no compiler, or one that fails.
    """
    _build.need_binding()
    root = root or SOURCES
    cxx = _build.compiler()
    prefix = [*cxx.command, "-x", "c++", "-DQUESTBENCH_EMULATOR", *FLAGS, *_build.includes(root)]
    linker = [*cxx.command, "-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs"]
    kernels = sorted((root / "cuda").glob("*.cu")) if sources is None else list(sources)
    every = [*kernels, *sorted((root / "emulator").glob("*.cpp"))]
    headers = [*_build_cuda.headers(root), *(root / "emulator").glob("*.h")]
    return _build.library(LIBRARY, prefix, linker, every, root, cxx.version, headers=headers)


@functools.cache
def load_emulator() -> Any:
    """The kernels' functions over CPU tensors. ``emulator_set_seed`` chooses the schedule."""
    return _build.loaded(build_emulator())
