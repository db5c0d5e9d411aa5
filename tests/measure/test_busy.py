"""What other programs take of the processor, on machines made of text files."""

from __future__ import annotations

from pathlib import Path

import pytest

from questbench.measure import busy, cgroup
from questbench.measure.busy import Reading, Watch, share


def after(seconds: float, busy_seconds: float, own: float) -> Reading:
    return Reading(100 + seconds, 50 + busy_seconds, 7 + own)


BEFORE = after(0, 0, 0)


@pytest.mark.parametrize(
    ("reading", "cores", "quota", "expected"),
    [
        (after(10, 20, 20), 2, 2, 0.0),
        (after(10, 15, 5), 2, 2, 0.5),
        (after(10, 40, 20), 8, 4, 0.0),  # they use two of the four cores that this process may not use anyway
        (after(10, 80, 20), 8, 4, 0.5),
        (after(10, 5, 9), 2, 2, 0.0),  # counts of two clocks may disagree
        (after(0.01, 5, 0), 2, 2, None),
    ],
)
def test_the_share_of_what_this_process_could_have(reading, cores, quota, expected):
    assert share(BEFORE, reading, cores, quota) == expected
    assert share(None, reading, cores, quota) is None and share(BEFORE, None, cores, quota) is None


def test_a_watch_speaks_up_where_others_worked(monkeypatch):
    monkeypatch.setattr(busy, "allowed_cores", lambda: (2, 2.0))
    readings = iter([BEFORE, after(1, 1, 1), after(10, 18, 10)])
    watch = Watch(lambda: next(readings))
    watch.look()
    assert watch.others == 0 and watch.caution() is None
    watch.look()
    assert watch.others == pytest.approx(0.4) and "40%" in (watch.caution() or "")


def test_only_cores_that_this_process_may_run_on_count(tmp_path: Path, monkeypatch):
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9 9 9\ncpu0 100 0 100 500 40 0 0 0 0 0\ncpu1 900 0 0 0 0 0 0 100 0 0\ncpu2 5 0 0 0\n")
    monkeypatch.setattr(busy.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(busy.os, "sysconf", lambda name: 100)
    found = busy.read(stat)
    assert found is not None and found.busy == 12.0
    assert busy.read(tmp_path / "none") is None


def version_2(root: Path) -> Path:
    group = root / "job" / "step"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("5000\n")
    (root / "job" / "memory.max").write_text("10000\n")
    (root / "job" / "memory.current").write_text("6000\n")
    (root / "job" / "memory.stat").write_text("anon 1\ninactive_file 1000\n")
    (group / "cpu.max").write_text("150000 100000\n")
    (root / "job" / "cpu.max").write_text("max 100000\n")
    own = root / "own"
    own.write_text("0::/job/step\n")
    return own


def version_1(root: Path) -> Path:
    group = root / "memory" / "job"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("10000\n")
    (group / "memory.usage_in_bytes").write_text("6000\n")
    (group / "memory.stat").write_text("cache 1\ntotal_inactive_file 1000\n")
    (root / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (root / "memory" / "memory.usage_in_bytes").write_text("1\n")
    cpu = root / "cpu,cpuacct"
    cpu.mkdir()
    (cpu / "cpu.cfs_quota_us").write_text("150000\n")
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    own = root / "own"
    own.write_text("9:memory:/job\n2:cpu,cpuacct:/not/seen/from/inside\n0::/\n")
    return own


@pytest.mark.parametrize("version", [version_1, version_2])
def test_limits_of_control_groups(tmp_path: Path, version):
    own = version(tmp_path)
    assert cgroup.memory_left(tmp_path, own) == 5000, "what the page cache could give back is not used"
    assert cgroup.cpu_quota(tmp_path, own) == 1.5


def test_no_limits(tmp_path: Path):
    assert cgroup.memory_left(tmp_path, tmp_path / "own") is None
    assert cgroup.cpu_quota(tmp_path, tmp_path / "own") is None
