"""How much of the processor other programs take: of the cores and the quota that this process may use.

The kernel counts, per core, the time in which it was not idle; what this process did not use itself, somebody else did
(the hypervisor included, as "steal"). On a machine with more cores than this process may use, others are welcome to
the rest, so that only what they take of its own part counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

from questbench.measure import cautions
from questbench.measure.cgroup import cpu_quota

SAMPLE_SECONDS = 0.25
"""How long the machine is watched before a run begins."""
LEAST_SECONDS = 0.1
"""The kernel counts in hundredths of a second: shorter spans tell nothing."""
_STAT = Path("/proc/stat")


@dataclasses.dataclass(frozen=True)
class Reading:
    """Seconds so far."""

    wall: float
    busy: float
    """All cores that this process may run on, not idle, over whatever program."""
    own: float
    """This process and its finished children."""


def read(stat: Path = _STAT) -> Reading | None:
    """Now; ``None`` where the system does not tell."""
    try:
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        ticks = 0
        for line in stat.read_text(encoding="ascii").splitlines():
            name, *fields = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in allowed:
                # user, nice, system, idle, iowait, irq, softirq, steal; guest time stands in user already.
                ticks += sum(int(value) for place, value in enumerate(fields[:8]) if place not in (3, 4))
        second = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return Reading(time.monotonic(), ticks / second, own) if ticks else None


def allowed_cores() -> tuple[int, float]:
    """Cores that this process may run on, and how many of them its quota pays for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores, float(cores) if quota is None else min(quota, float(cores))


def share(before: Reading | None, after: Reading | None, cores: int, quota: float) -> float | None:
    """Share of the processor time of ``quota`` of ``cores`` that others took between two readings.

    Returns:
        0 to 1; ``None`` where it is not known.
    """
    if before is None or after is None or after.wall - before.wall < LEAST_SECONDS:
        return None
    others = max((after.busy - before.busy) - (after.own - before.own), 0.0) / (after.wall - before.wall)
    return min(max(others - (cores - quota), 0.0) / quota, 1.0)


class Watch:
    """Watches the machine while something is timed.

    Args:
        reading: tells the time used so far; tests pass their own.
    """

    def __init__(self, reading: Callable[[], Reading | None] = read) -> None:
        self._reading = reading
        self._cores, self._quota = allowed_cores()
        self._first = self._last = reading()

    def look(self) -> None:
        """Between rounds, so that the end of the watch is the end of the last round."""
        with contextlib.suppress(OSError):
            self._last = self._reading()

    @property
    def others(self) -> float | None:
        """Share that others took from the beginning to the last look."""
        return share(self._first, self._last, self._cores, self._quota)

    def caution(self) -> str | None:
        """A sentence if it was too much."""
        return cautions.disturbed(self.others)


def caution_before(sleep: Callable[[float], object] = time.sleep) -> str | None:
    """A sentence if the machine is busy right now, while this process does nothing."""
    watch = Watch()
    sleep(SAMPLE_SECONDS)
    watch.look()
    return cautions.busy(others=watch.others)
