"""Compile kernels on first use and keep the result, keyed by everything it depends on; and those of the CPU.

A library is built for the processor at hand (``-march=native``) and never shipped, so its folder is named after the
sources, the compiler, the flags, the processor and the binding's version.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from questbench import _compiling
from questbench._paths import cache_folder, kernel_sources
from questbench.errors import PrerequisiteError, UsageError
from questbench.kernels import _choices

LIBRARY = "libquestbench_cpu.so"
EMULATED = "avx512-emulated"
ISA_FLAGS = {
    "native": ["-march=native"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "portable": [],
    # Without optimisation: this is compiled for one test, whose shapes are small.
    EMULATED: ["-mavx2", "-mfma", "-mf16c", "-O0"],
}
"""Instruction sets, chosen by ``QUESTBENCH_ISA``: what the processor has, or less for tests and old machines; or, for
tests alone, the code for AVX-512 by functions that compute the same."""
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
    chosen, root = compiler(), kernel_sources()
    prefix = [*chosen.command, *_flags(), *includes(root)]
    linker = [*chosen.command, "-shared", "-fopenmp"]
    sources, headers = (sorted((root / "cpu").glob(f"*.{kind}")) for kind in ("cpp", "h"))
    if os.environ.get("QUESTBENCH_ISA") == EMULATED:
        headers.append(root / "emulator" / "avx512.h")
        if not headers[-1].is_file():
            raise UsageError(f"QUESTBENCH_ISA={EMULATED} is for tests in a checkout.", "Use QUESTBENCH_ISA=native.")
        prefix += ["-include", str(headers[-1])]
    # A library built for one processor may not run on another.
    version = f"{chosen.version}\n{_compiling.processor()}"
    return library(LIBRARY, prefix, linker, sources, root, version, force, verbose, headers)


def library(
    name: str,
    prefix: list[str],
    linker: list[str],
    sources: Sequence[Path],
    root: Path,
    compiler: str,
    force: bool = False,
    verbose: bool = False,
    headers: Iterable[Path] = (),
) -> BuildResult:
    """Compile each source by ``prefix`` and link them by ``linker``, unless the result is in the cache.

    Objects are kept one by one, named after all that goes into them, so a change of one source compiles one source.

    Args:
        root: folder of the kernel sources.
        compiler: its version, on which the results depend.
        headers: that they depend on besides those in ``include``.

    Raises:
        PrerequisiteError: a compiler that fails, or a cache that cannot be written.
    """
    cache = cache_folder()
    flags = [flag for flag in prefix if str(root) not in flag]
    binding = importlib.metadata.version("apache-tvm-ffi")
    parts = [compiler, *flags, binding, *contents([*root.glob("include/questbench/*.h"), *headers])]
    objects = [cache / "objects" / f"{source.stem}-{_digest([*parts, source.read_text()])}.o" for source in sources]
    key = _digest([*linker, *(made.name for made in objects)])
    folder = cache / f"{name.removeprefix('libquestbench_').removesuffix('.so')}-{key}"

    def compile_into(scratch: Path) -> Path:
        def compile_one(source: Path, target: Path) -> None:
            if _compiling.is_whole(target) and not force:
                return
            made = scratch / target.name
            _compiling.run([*prefix, "-c", str(source), "-o", str(made)], made, verbose=verbose)
            _compiling.keep(made, target)

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(compile_one, sources, objects))
        import tvm_ffi.libinfo

        binding = [f"-L{Path(tvm_ffi.libinfo.find_libtvm_ffi()).parent}", "-ltvm_ffi", "-ldl", "-lpthread"]
        made = scratch / name
        _compiling.run([*linker, *map(str, objects), *binding, "-o", str(made)], made, verbose=verbose)
        return made

    return stored(folder / name, force, compile_into)


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
            sys.stderr.write(f"Compiling the kernels for this machine ({library.name}): a minute or two, once.\n")
            sys.stderr.flush()
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
    """The compiled module; its functions take torch tensors. Compiles on first use, raises as :func:`cpu`."""
    return cpu()[0]


@functools.cache
def cpu(threads: int | None = None) -> tuple[Any, _choices.Chosen]:
    """The compiled module, and what was chosen for this machine. The first use compiles, then measures what to choose.

    Args:
        threads: that it is chosen for; ``None`` for those that torch has now.

    Raises:
        PrerequisiteError: as :func:`build_cpu`.
        UsageError: ``QUESTBENCH_CHOICE`` names something unknown.
    """
    _choices.asked()  # before minutes of compiling
    built = build_cpu()
    module = loaded(built)
    import torch

    from questbench.kernels import _tune

    count = threads or torch.get_num_threads()
    measure = functools.partial(_tune.measure, module=module, threads=count)
    return module, _choices.settle(built.path, module, count, measure)


def _flags() -> list[str]:
    isa = os.environ.get("QUESTBENCH_ISA", "native")
    if isa not in ISA_FLAGS:
        raise UsageError(f"QUESTBENCH_ISA={isa} is not known.", f"Use one of: {', '.join(ISA_FLAGS)}.")
    native = ISA_FLAGS[isa] if platform.machine() in ("x86_64", "AMD64") or isa == "native" else []
    return COMMON_FLAGS + native


def includes(root: Path) -> list[str]:
    """Flags for the headers of the kernels and of the binding."""
    import tvm_ffi.libinfo

    # As system headers: what is theirs raises no warnings.
    system = [flag for folder in tvm_ffi.libinfo.include_paths() for flag in ("-isystem", str(folder))]
    return [f"-I{root / 'include'}", *system]


def contents(files: Iterable[Path]) -> list[str]:
    """Names and texts, for a digest."""
    return [f"{file.name}\n{file.read_text()}" for file in sorted(files)]


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
