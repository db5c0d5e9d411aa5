"""Building the CPU kernels: errors that say what to do, one build for all who ask, nothing built twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from questbench.errors import PrerequisiteError, UsageError
from questbench.kernels import _build
from questbench.kernels.cpu import CpuOps

TINY = '#include "questbench/x.h"\nint questbench_{} = X;\n'


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kernel sources that compile in no time, and a cache folder of their own."""
    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QUESTBENCH_ISA", raising=False)
    root = tmp_path / "kernels"
    for folder in (root / "cpu", root / "include" / "questbench"):
        folder.mkdir(parents=True)
    (root / "include" / "questbench" / "x.h").write_text("#define X 1\n")
    for name in "ab":
        (root / "cpu" / f"{name}.cpp").write_text(TINY.format(name))
    monkeypatch.setattr(_build, "kernel_sources", lambda: root)
    return root


@pytest.mark.parametrize(("name", "value"), [("PATH", ""), ("CXX", "nonexistent")])
def test_no_compiler_says_how_to_get_one(sources: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(PrerequisiteError) as caught:
        _build.build_cpu()
    assert "install g++" in str(caught.value.hint).lower()
    assert "no C++ compiler" in str(CpuOps().unavailable())


def test_a_second_build_is_cached_and_a_forced_one_is_not(sources: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = _build.build_cpu()
    assert "Compiling the kernels for this machine" in capfd.readouterr().err
    second = _build.build_cpu()
    assert capfd.readouterr().err == ""
    assert first.path == second.path and first.path.is_file()
    assert not first.cached and second.cached and second.seconds == 0
    assert not _build.build_cpu(force=True).cached


def test_a_changed_header_is_a_new_build(sources: Path) -> None:
    first = _build.build_cpu()
    (sources / "include" / "questbench" / "x.h").write_text("#define X 2\n")
    second = _build.build_cpu()
    assert second.path != first.path and not second.cached


def test_a_changed_source_compiles_that_source_alone(sources: Path, tmp_path: Path) -> None:
    _build.build_cpu()
    before = set((tmp_path / "cache" / "objects").glob("*.o"))
    (sources / "cpu" / "b.cpp").write_text(TINY.format("c"))
    assert not _build.build_cpu().cached
    assert [path.name[:2] for path in set((tmp_path / "cache" / "objects").glob("*.o")) - before] == ["b-"]


def test_a_failing_compiler_shows_its_last_lines(sources: Path) -> None:
    (sources / "cpu" / "b.cpp").write_text("#error the reason\n")
    with pytest.raises(PrerequisiteError, match="the reason") as caught:
        _build.build_cpu()
    assert "b.cpp" in caught.value.message and caught.value.hint
    (sources / "cpu" / "b.cpp").write_text(TINY.format("b"))
    assert not _build.build_cpu().cached


def test_a_cache_folder_that_is_a_file_is_named(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path / "taken"))
    with pytest.raises(PrerequisiteError, match="taken") as caught:
        _build.build_cpu()
    assert "QUESTBENCH_CACHE" in str(caught.value.hint)


def test_an_unknown_instruction_set_is_a_usage_error(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUESTBENCH_ISA", "sse9")
    with pytest.raises(UsageError, match="sse9") as caught:
        _build.build_cpu()
    assert "portable" in str(caught.value.hint)


def test_two_processes_that_build_at_once_both_succeed(sources: Path) -> None:
    code = (
        "import sys, pathlib; from questbench.kernels import _build; "
        "_build.kernel_sources = lambda: pathlib.Path(sys.argv[1]); "
        "sys.exit(0 if _build.build_cpu().path.is_file() else 1)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(sources)]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert _build.build_cpu().cached
