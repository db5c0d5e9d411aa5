"""Compilers and what they make: found, run within a time limit, kept in the cache with a hash that is checked.

A damaged library ends the process that loads it with a signal, so what is in the cache counts only while its hash is
right. What a build needs for a while lies in a folder named after its lock, which shows what a killed one has left.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from questbench.errors import PrerequisiteError

COMPILE_SECONDS = 1800.0
"""Longest time for one source; a compiler that hangs is stopped."""
ANSWER_SECONDS = 60.0
"""Longest time for a compiler to say its version."""
DAY = 86400.0
SCRATCH = "tmp-"
"""What the names of folders of builds that are not finished begin with."""


@dataclass(frozen=True)
class Compiler:
    """A compiler that answers."""

    command: tuple[str, ...]
    """The program and the arguments that go with it, as in ``CXX="g++ -m64"``."""
    version: str
    """What it says of itself."""


def compiler(*defaults: str) -> Compiler:
    """The C++ compiler: ``$CXX``, which may have arguments, else the first of ``defaults`` that is there.

    Raises:
        PrerequisiteError: there is none, or it cannot be run.
    """
    hint = "Install g++ 11 or newer (Debian: apt-get install g++), or run with --backend reference (slow)."
    named = os.environ.get("CXX", "").strip()
    try:
        candidates = [tuple(shlex.split(named))] if named else [(name,) for name in defaults]
    except ValueError as error:
        raise PrerequisiteError(
            f"There is no C++ compiler: CXX={named} is not a command ({error}).",
            'Set CXX to a compiler and its arguments, as in CXX="g++ -m64", or unset it.',
        ) from None
    for command in candidates:
        if path := shutil.which(command[0]):
            return Compiler((path, *command[1:]), _version(path))
    names = " and ".join(f"'{command[0]}'" for command in candidates)
    wrong = f"{names}, which CXX names, was" if named else f"{names} {'was' if len(candidates) == 1 else 'were'}"
    raise PrerequisiteError(
        f"There is no C++ compiler: {wrong} not found.",
        ("Unset CXX, or set it to a compiler. " if named else "") + hint,
    )


def processor() -> str:
    """Model and instruction sets of this machine, which code that is built for it depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.lower().startswith(("model name", "flags", "features"))}))


def processor_name() -> str:
    """Model of this machine's processor with its family: some makers give several generations one name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    numbers = [f"{name} {told[name]}" for name in ("cpu family", "model", "stepping") if name in told]
    model = " ".join(told.get("model name", platform.machine()).split())
    return f"{model} ({', '.join(numbers)})" if numbers else model


@functools.cache
def _version(path: str) -> str:
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
        )
    except OSError as error:
        reason = error.strerror or str(error)
    except subprocess.TimeoutExpired:
        reason = f"it does not say its version within {ANSWER_SECONDS:.0f} s"
    else:
        if done.returncode == 0:
            return done.stdout
        said = done.stderr.strip().splitlines()
        reason = f"'{path} --version' ends with {done.returncode}" + (f": {said[-1][:200]}" if said else "")
    raise PrerequisiteError(
        f"There is no C++ compiler that works: {path} cannot be used ({reason}).",
        "Set CXX to another one, or run with --backend reference (slow).",
    )


def run(command: Sequence[str], made: Path, *, verbose: bool = False) -> None:
    """Run a compiler or linker that writes ``made``.

    Args:
        verbose: leave what it says on stderr.

    Raises:
        PrerequisiteError: it fails, takes too long, or writes nothing or something else than machine code.
    """
    # Into a file: a process that a killed compiler leaves behind would hold a pipe open.
    with tempfile.TemporaryFile() as said:
        streams = {} if verbose else {"stdout": said, "stderr": subprocess.STDOUT}
        with subprocess.Popen(list(command), stdin=subprocess.DEVNULL, **streams) as process:  # type: ignore[call-overload]
            try:
                code = process.wait(COMPILE_SECONDS)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                process.kill()
        said.seek(0)
        last = "\n".join(said.read().decode(errors="replace").strip().splitlines()[-12:])
    hint = "Try another compiler with CXX=..., or run with --backend reference (slow); questbench doctor says more."
    if code is None:
        raise PrerequisiteError(f"The compiler took more than {COMPILE_SECONDS:.0f} s for {made.name}: stopped.", hint)
    if code != 0:
        sources = [Path(part).name for part in command if part.endswith((".cpp", ".cu"))]
        raise PrerequisiteError(f"The compiler failed on {', '.join(sources) or made.name}:\n{last}", hint)
    if not _is_machine_code(made):
        raise PrerequisiteError(f"{command[0]} ended without an error but wrote no machine code to {made.name}.", hint)


def _is_machine_code(made: Path) -> bool:
    """Whether this is an ELF file that is as long as its header says."""
    try:
        with made.open("rb") as file:
            header = file.read(64)
        sections, each, count = struct.unpack_from("<Q10xHH", header, 40)
        return header[:4] == b"\x7fELF" and made.stat().st_size >= sections + each * count
    except (OSError, struct.error):
        return False


def is_whole(file: Path) -> bool:
    """Whether a file in the cache is the one that :func:`keep` put there."""
    try:
        return _mark(file).read_text().strip() == hashlib.sha256(file.read_bytes()).hexdigest()
    except (OSError, UnicodeDecodeError):
        return False


def keep(made: Path, file: Path) -> None:
    """Move what a compiler made to its place in the cache, on the same disk, and note its hash; both reach the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    mark = _mark(made)
    mark.write_text(hashlib.sha256(made.read_bytes()).hexdigest() + "\n")
    for path in (made, mark):
        _sync(path)
    mark.replace(_mark(file))
    made.replace(file)
    _sync(file.parent)


def _mark(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def building(cache: Path, name: str, doing: str = "compiling the same kernels") -> Iterator[Path]:
    """An empty folder for the build of ``name``, which no other process builds meanwhile; it is gone afterwards.

    Whoever has to wait is told what the other one is doing. Folders of builds that were killed are removed.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / f"{name}.lock", doing):
        _sweep(cache)
        scratch = cache / f"{SCRATCH}{name}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path, doing: str) -> Iterator[None]:
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            who = lock.read(20).strip()
            holder = f"process {who}" if who.isdecimal() else "another process"
            sys.stderr.write(f"Waiting for {holder}, which is {doing} (it holds {path}).\n")
            sys.stderr.flush()
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _sweep(cache: Path) -> None:
    """Remove what builds have left that were killed: their lock is free."""
    for left in cache.glob("tmp*"):
        if not left.name.startswith(SCRATCH):  # of earlier versions, without a lock
            with contextlib.suppress(OSError):
                if left.is_dir() and time.time() - left.stat().st_mtime > DAY:
                    shutil.rmtree(left, ignore_errors=True)
            continue
        with contextlib.suppress(OSError), (cache / f"{left.name.removeprefix(SCRATCH)}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
