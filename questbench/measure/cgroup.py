"""What a container or a job may use: limits of control groups, version 1 and 2, of this group and all above it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60
"""Version 1 writes a number near 2^63 where there is no limit."""


def folders(controller: str, root: Path = _ROOT, own: Path = _OWN) -> Iterator[Path]:
    """Folders of the groups of this process under a controller, the innermost first.

    A process in a container sees its own group as the root of the file system, while ``/proc/self/cgroup`` may name a
    path outside: folders that are not there are left out, the root never is.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            bases = [root, root / "unified"]
        elif controller in controllers.split(","):
            bases = [root / controllers, root / controller]
        else:
            continue
        for base in bases:
            if not base.is_dir():
                continue
            place = base / path.strip("/")
            while place != base:
                if place.is_dir():
                    yield place
                place = place.parent
            yield base


def memory_left(root: Path = _ROOT, own: Path = _OWN) -> int | None:
    """Bytes that the control groups still allow; ``None`` where they set no limit.

    Pages of files that were read and can be dropped do not count as used.
    """
    found = None
    for folder in folders("memory", root, own):
        for limit_name, usage_name, dropped in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, usage = _number(folder / limit_name), _number(folder / usage_name)
            if limit is None or usage is None or limit >= UNLIMITED:
                continue
            left = max(limit - max(usage - (field(folder / "memory.stat", dropped) or 0), 0), 0)
            found = left if found is None else min(found, left)
    return found


def cpu_quota(root: Path = _ROOT, own: Path = _OWN) -> float | None:
    """Cores' worth of time that the control groups allow; ``None`` where they set no limit."""
    found = None
    for folder in folders("cpu", root, own):
        try:
            limit, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            quota = None if limit == "max" else int(limit) / int(period)
        except (OSError, ValueError):
            run, span = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
            quota = run / span if run is not None and span and run > 0 else None
        if quota is not None:
            found = quota if found is None else min(found, quota)
    return found


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def field(file: Path, name: str) -> int | None:
    """The number behind a name in a file of lines such as ``MemAvailable:  1234 kB``."""
    try:
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            words = line.replace(":", " ").split()
            if words[:1] == [name]:
                return int(words[1])
    except (OSError, ValueError, IndexError):
        pass
    return None
