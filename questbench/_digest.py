"""SHA-256 of whole files; that of a large one is remembered by path, size and time of change."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

from questbench import _paths

LARGE = 32 << 20
"""Bytes from which on a digest is worth a file in the cache folder."""
SETTLED = 2.0
"""Seconds: a file that changed a moment ago may change again within one tick of its clock, and is not remembered."""


def sha256(path: Path) -> str:
    """Of everything in the file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        kept = _kept(path, stat) if stat.st_size >= LARGE else None
        if kept is not None:
            with contextlib.suppress(OSError):
                found = kept.read_text(encoding="ascii").strip()
                if len(found) == 64:
                    return found
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if kept is not None and time.time() - stat.st_mtime > SETTLED:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = kept.with_suffix(f".{os.getpid()}")
            temporary.write_text(digest, encoding="ascii")
            temporary.replace(kept)
    return digest


def _kept(path: Path, stat: os.stat_result) -> Path:
    """Where the digest of a file in this state is kept."""
    state = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}"
    return _paths.cache_folder() / "sha256" / hashlib.sha256(state.encode()).hexdigest()
