"""Opening the files of a run folder: a link is never written through, and a pipe or a device is never waited for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from questbench.errors import PrerequisiteError

_SAFE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def present(path: Path) -> bool:
    """Whether there is something of this name, a broken link and a pipe included."""
    return os.path.lexists(path)


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; a name that is too long for the system is none either."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for such names


def read(path: Path) -> bytes | None:
    """The content of a file; ``None`` if there is none.

    Raises:
        PrerequisiteError: it is no plain file, or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _SAFE)
    except FileNotFoundError:
        if path.is_symlink():
            raise _refused(path, "is a link to a file that does not exist") from None
        return None
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror or error}") from None
    try:
        _require_plain(path, descriptor)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read()
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror or error}") from None
    finally:
        os.close(descriptor)


def open_to_write(path: Path, flags: int = os.O_WRONLY | os.O_APPEND) -> int:
    """A descriptor of a file of a run folder, which is made if there is none.

    Raises:
        PrerequisiteError: it is a link, has a second name, or is no plain file.
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_CREAT | _SAFE | _NO_LINK, 0o644)
    except OSError as error:
        if path.is_symlink():
            target = "is a link, and questbench writes to no file outside the run folder"
            raise _refused(path, target) from None
        if error.errno in (errno.ENXIO, errno.EISDIR):  # a pipe that nobody reads, a folder
            raise _refused(path, "is not a plain file") from None
        raise
    try:
        _require_plain(path, descriptor)
        if os.fstat(descriptor).st_nlink > 1:
            raise _refused(path, "is a hard link: the same file has another name, which would change with it")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _require_plain(path: Path, descriptor: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise _refused(path, "is not a plain file")


def _refused(path: Path, why: str) -> PrerequisiteError:
    return PrerequisiteError(f"{path} {why}.", "Put a copy of the file in its place, or leave this run out.")
