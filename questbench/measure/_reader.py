"""Builds and loads the compiled reader of the bandwidth probe."""

from __future__ import annotations

import ctypes
import hashlib
import weakref
from collections.abc import Sequence
from pathlib import Path

from questbench import _compiling
from questbench._paths import cache_folder, kernel_sources
from questbench.errors import PrerequisiteError

FLAGS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-pthread")
NATIVE = ("-march=native",)


class Reader:
    """A pool of threads that read a buffer together; it ends with this object.

    Args:
        threads: threads that read, the caller's included.

    Raises:
        PrerequisiteError: no compiler, or it fails, or there is nowhere to keep what it makes.
    """

    def __init__(self, threads: int) -> None:
        path = build()
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise PrerequisiteError(f"{path} cannot be loaded: {error}.", "Delete it and run again.") from error
        library.questbench_reader_new.argtypes = [ctypes.c_int]
        library.questbench_reader_new.restype = ctypes.c_void_p
        library.questbench_reader_read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        library.questbench_reader_read.restype = ctypes.c_uint64
        library.questbench_reader_free.argtypes = [ctypes.c_void_p]
        library.questbench_reader_free.restype = None
        self._read = library.questbench_reader_read
        self._pool = library.questbench_reader_new(threads)
        # Not at exit: the threads end with the process, and a forked child would wait for threads it does not have.
        weakref.finalize(self, library.questbench_reader_free, self._pool).atexit = False

    def __call__(self, address: int, size: int) -> int:
        """Read ``size`` bytes from ``address``; the exclusive or of all of them in words of 8 bytes."""
        return int(self._read(self._pool, address, size))


def build() -> Path:
    """The shared library, compiled unless it is there already, whole, for this source, compiler and CPU."""
    source = kernel_sources() / "probe" / "read.cpp"
    compiler = _compiling.compiler("c++", "g++", "clang++")
    try:
        told = " ".join((*compiler.command, compiler.version, *FLAGS, *NATIVE, _compiling.processor()))
        parts = (source.read_bytes(), told.encode())
        name = f"read-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}"
        target = cache_folder() / "probe" / f"{name}.so"
        if not _compiling.is_whole(target):
            with _compiling.building(cache_folder(), name) as scratch:
                _compiling.keep(_compile(compiler.command, source, scratch / target.name), target)
    except (OSError, PrerequisiteError) as error:
        raise PrerequisiteError(
            f"The bandwidth probe could not be built: {error}.", "See: questbench doctor."
        ) from error
    return target


def _compile(command: Sequence[str], source: Path, made: Path) -> Path:
    # Some compilers do not know "native" for their CPU; plain vectors still read fast.
    try:
        _compiling.run([*command, *FLAGS, *NATIVE, str(source), "-o", str(made)], made)
    except PrerequisiteError:
        _compiling.run([*command, *FLAGS, str(source), "-o", str(made)], made)
    return made
