"""Compile ``kernels/cuda`` with nvcc for a device, and keep the results like the CPU kernels'."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from questbench import _compiling
from questbench._paths import kernel_sources
from questbench.errors import PrerequisiteError
from questbench.kernels import _build
from questbench.kernels._build import BuildResult

CUDA_LIBRARY = "libquestbench_cuda.so"
TARGETS = ("sm_80", "sm_90", "sm_100")
"""Architectures that the kernels are written for; all are compiled in the tests where there is an nvcc."""
NVCC_FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-lineinfo", "-Xcompiler=-fPIC"]


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that can compile."""

    home: Path
    """Its real folder, also where the nvcc on PATH is a script that calls another one."""
    version: str
    """Of nvcc, as in 13.0.88."""

    @property
    def nvcc(self) -> Path:
        """The compiler itself."""
        return self.home / "bin" / "nvcc"


def toolkit() -> Toolkit | None:
    """The first of ``$CUDA_HOME``, nvcc on PATH, /usr/local/cuda and one from pip; ``None``: there is none."""
    named, found = os.environ.get("CUDA_HOME"), shutil.which("nvcc")
    candidates = [Path(named) / "bin" / "nvcc"] if named else []
    candidates += [Path(found)] if found else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    installed = [Path(path) / "nvidia" for path in sys.path]
    candidates += [folder / f"cu{major}" / "bin" / "nvcc" for folder in installed for major in (13, 12)]
    for nvcc in candidates:
        if nvcc.is_file() and (works := _toolkit(nvcc)) is not None:
            return works
    return None


@functools.cache
def _toolkit(nvcc: Path) -> Toolkit | None:
    try:
        # What nvcc prints of its own folder is right also where this file is a wrapper or a link.
        asked = {"capture_output": True, "text": True, "errors": "replace", "timeout": _compiling.ANSWER_SECONDS}
        dry = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], **asked)  # type: ignore[call-overload]
        told = subprocess.run([nvcc, "--version"], **asked).stdout  # type: ignore[call-overload]
    except (OSError, subprocess.TimeoutExpired):
        return None
    here, version = re.search(r"^#\$ _HERE_=(.+)$", dry.stderr, re.M), re.search(r"V(\d+\.\d+\.\d+)", told)
    if here is None or version is None:
        return None
    home = Path(here.group(1).strip()).resolve().parent
    return Toolkit(home, version.group(1)) if (home / "bin" / "nvcc").is_file() else None


def gencode(architectures: Iterable[str]) -> list[str]:
    """The flags of nvcc for machine code of each architecture, named as in ``sm_90``."""
    numbers = [name.removeprefix("sm_") for name in architectures]
    return [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]


def device_architecture() -> str | None:
    """The architecture of the current CUDA device, or ``None`` without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def build_cuda(
    architectures: Sequence[str] = (),
    sources: Sequence[Path] | None = None,
    force: bool = False,
    verbose: bool = False,
) -> BuildResult:
    """Compile the CUDA kernels if they are not in the cache.

    Args:
        architectures: as in ``sm_90``; none: that of the device at hand.
        sources: ``.cu`` files; ``None``: all of ``kernels/cuda``.
        force: compile anew.
        verbose: leave the compiler's output on stderr.

    Raises:
        PrerequisiteError: no toolkit, no device and no architecture, or a compiler that fails.
    """
    _build.need_binding()
    kit = toolkit()
    if kit is None:
        raise PrerequisiteError(
            "The CUDA kernels need nvcc and there is none on PATH, in CUDA_HOME or in /usr/local/cuda.",
            "Install the CUDA toolkit 12.8 or newer and set CUDA_HOME, or run with --device cpu.",
        )
    chosen = list(architectures) or [name for name in [device_architecture()] if name]
    if not chosen:
        raise PrerequisiteError(
            "No CUDA device was found, so there is no architecture to compile for.",
            "See: questbench doctor. From Python, name one: build_cuda(['sm_90']).",
        )
    root = kernel_sources()
    prefix = [str(kit.nvcc), *NVCC_FLAGS, *gencode(chosen), *_build.includes(root)]
    prefix += _host_compiler()
    linker = [str(kit.nvcc), "-shared", "-cudart=static"]
    kernels = sorted((root / "cuda").glob("*.cu")) if sources is None else list(sources)
    version = f"nvcc {kit.version}"
    return _build.library(CUDA_LIBRARY, prefix, linker, kernels, root, version, force, verbose, headers(root))


@functools.cache
def load_cuda() -> Any:
    """The kernels for the device at hand; the functions take torch tensors. Compiles on first use."""
    return _build.loaded(build_cuda())


def _host_compiler() -> list[str]:
    """The flags of nvcc for the compiler in ``$CXX``, whose own arguments go to it as they are."""
    if not os.environ.get("CXX", "").strip():
        return []
    program, *arguments = _build.compiler().command
    return ["-ccbin", program, *(f"-Xcompiler={argument.replace(',', chr(92) + ',')}" for argument in arguments)]


def headers(root: Path) -> list[Path]:
    """Those that the sources include besides the ones that all kernels share."""
    return [*root.glob("cuda/*.h"), *root.glob("cuda/*.cuh")]
