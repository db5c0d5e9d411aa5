"""Compile the CPU kernels on first use and keep the result, keyed by everything it depends on.

The library is built for the processor at hand (``-march=native``) and never shipped, so its folder is named after the
sources, the compiler, the flags, the processor and the binding's version.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from questbench import _compiling
from questbench._paths import cache_folder, kernel_sources
from questbench.errors import PrerequisiteError, UsageError

LIBRARY = "libquestbench_cpu.so"
ISA_FLAGS = {
    "native": ["-march=native"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "portable": [],
}
"""Instruction sets, chosen by ``QUESTBENCH_ISA``: what the processor has, or less for tests and old machines."""
COMMON_FLAGS = ["-std=c++20", "-O3", "-fopenmp", "-fPIC", "-Wno-aggressive-loop-optimizations", "-Wno-psabi"]


@dataclass(frozen=True)
class BuildResult:
    """A compiled library."""

    path: Path
    seconds: float
    """Time the compilation took, 0 where it was there already."""
    cached: bool


def compiler() -> _compiling.Compiler:
    """The C++ compiler: ``$CXX``, else g++.

    Raises:
        PrerequisiteError: there is none, or it cannot be run.
    """
    return _compiling.compiler("g++")


def is_built() -> bool:
    """Whether the library for this machine and these sources lies in the cache, whole."""
    with contextlib.suppress(Exception):
        return _compiling.is_whole(_folder() / LIBRARY)
    return False


def has_binding() -> bool:
    """Whether apache-tvm-ffi is installed, through which the compiled kernels are called."""
    return importlib.util.find_spec("tvm_ffi") is not None


def need_binding() -> None:
    """Raise :class:`PrerequisiteError` without :func:`has_binding`."""
    if not has_binding():
        raise PrerequisiteError(
            "The compiled kernels are called through apache-tvm-ffi, which is not installed.",
            "pip install apache-tvm-ffi",
        )


def build_cpu(force: bool = False, verbose: bool = False) -> BuildResult:
    """Compile the CPU kernels if they are not in the cache. Safe under several processes at once.

    Args:
        force: compile anew.
        verbose: leave the compiler's output on stderr.

    Raises:
        PrerequisiteError: no compiler, a compiler that fails, no binding, or a cache folder that cannot be written.
    """
    need_binding()
    library = _folder() / LIBRARY
    return stored(library, force, lambda scratch: _compile(scratch, verbose))


def stored(library: Path, force: bool, compile_into: Callable[[Path], Path]) -> BuildResult:
    """The library in the cache; compiled if it is not there, or not whole.

    Args:
        compile_into: writes the library somewhere into the folder it is given, and returns where.

    Raises:
        PrerequisiteError: it does not compile, or the cache folder cannot be written.
    """
    if _compiling.is_whole(library) and not force:
        return BuildResult(library, 0.0, cached=True)
    cache = library.parent.parent
    try:
        with _compiling.building(cache, library.parent.name) as scratch:
            if _compiling.is_whole(library) and not force:
                return BuildResult(library, 0.0, cached=True)
            start = time.monotonic()
            _compiling.keep(compile_into(scratch), library)
    except OSError as error:
        raise PrerequisiteError(
            f"The kernels cannot be written to {cache}: {error.strerror or error}.",
            "Set QUESTBENCH_CACHE to a writable folder.",
        ) from None
    return BuildResult(library, time.monotonic() - start, cached=False)


def loaded(built: BuildResult) -> Any:
    """The module of a library; its functions take torch tensors.

    Raises:
        PrerequisiteError: it cannot be loaded here.
    """
    import torch  # noqa: F401  # first: the kernels share its libraries, and obey torch.set_num_threads
    import tvm_ffi

    try:
        return tvm_ffi.load_module(str(built.path))
    except (OSError, RuntimeError) as error:
        raise PrerequisiteError(
            f"The kernels in {built.path} cannot be loaded: {error}.",
            "Try: questbench build --force. Or another compiler with CXX=...",
        ) from None


@functools.cache
def load_cpu() -> Any:
    """The compiled module; its functions take torch tensors. Compiles on first use, raises as :func:`build_cpu`."""
    return loaded(build_cpu())


def _compile(scratch: Path, verbose: bool) -> Path:
    sources = sorted((kernel_sources() / "cpu").glob("*.cpp"))
    command = compiler().command
    prefix = [*command, *_flags(), *[f"-I{folder}" for folder in _includes()]]
    objects = [scratch / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, made: Path) -> None:
        _compiling.run([*prefix, "-c", str(source), "-o", str(made)], made, verbose=verbose)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(compile_one, sources, objects))
    library = scratch / LIBRARY
    import tvm_ffi.libinfo

    binding = Path(tvm_ffi.libinfo.find_libtvm_ffi())
    linked = [*map(str, objects), f"-L{binding.parent}", "-ltvm_ffi", "-o", str(library)]
    _compiling.run([*command, "-shared", "-fopenmp", *linked], library, verbose=verbose)
    return library


def _flags() -> list[str]:
    isa = os.environ.get("QUESTBENCH_ISA", "native")
    if isa not in ISA_FLAGS:
        raise UsageError(f"QUESTBENCH_ISA={isa} is not known.", f"Use one of: {', '.join(ISA_FLAGS)}.")
    native = ISA_FLAGS[isa] if platform.machine() in ("x86_64", "AMD64") or isa == "native" else []
    return COMMON_FLAGS + native


def _includes() -> list[str]:
    import tvm_ffi.libinfo

    return [str(kernel_sources() / "include"), *map(str, tvm_ffi.libinfo.include_paths())]


def _folder() -> Path:
    return cache_folder() / f"cpu-{_key()}"


def _key() -> str:
    import importlib.metadata

    digest = hashlib.sha256()
    root = kernel_sources()
    for source in sorted([*root.glob("cpu/*.*"), *root.glob("include/questbench/*.h")]):
        digest.update(source.name.encode() + source.read_bytes())
    chosen = compiler()
    parts = [chosen.version, *chosen.command[1:], *_flags(), _processor(), importlib.metadata.version("apache-tvm-ffi")]
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """Model and instruction sets: a library built for one processor may not run on another."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
    return platform.processor()
