"""Compilers and caches that are not what they should be: refused or mended, never loaded or waited for in silence."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_build import sources as sources  # the fixture: sources that compile in no time

from questbench import _compiling
from questbench.errors import PrerequisiteError
from questbench.kernels import _build
from questbench.kernels.cpu import CpuOps


def test_a_compiler_may_have_arguments(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _build.build_cpu().path
    monkeypatch.setenv("CXX", "g++ -DQUESTBENCH_EXTRA='a b'")
    (sources / "cpu" / "b.cpp").write_text("#ifndef QUESTBENCH_EXTRA\n#error lost\n#endif\nint questbench_b;\n")
    assert _build.build_cpu().path != plain
    assert CpuOps().unavailable() is None


@pytest.mark.parametrize("damage", ["empty", "junk", "half", "no hash"])
def test_a_damaged_library_is_built_anew(sources: Path, damage: str) -> None:
    first = _build.build_cpu().path
    whole = first.read_bytes()
    if damage == "no hash":
        first.with_name(first.name + ".sha256").unlink()
    else:
        first.write_bytes({"empty": b"", "junk": b"junk" * 99, "half": whole[: len(whole) // 2]}[damage])
    again = _build.build_cpu()
    assert not again.cached and again.path == first and _build.build_cpu().cached


def script(folder: Path, text: str) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "c++"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "says", "short"),
    [
        ("#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\necho junk > $1\n", "no machine code", None),
        ("#!/bin/sh\nexit 0\n", "no machine code", None),
        ('#!/bin/sh\ntest "$1" = --version || exec sleep 60\n', "more than 1 s", "COMPILE_SECONDS"),
        ("#!/bin/sh\nexec sleep 60\n", "does not say its version", "ANSWER_SECONDS"),
        ("#!/bin/sh\nexit 7\n", "ends with 7", None),
        ("\0\1 not a program", "Exec format error", None),
    ],
)
def test_a_compiler_that_does_not_compile_is_refused(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str, short: str | None
) -> None:
    monkeypatch.chdir(tmp_path)  # one of them writes into a file called --version
    if short:
        monkeypatch.setattr(_compiling, short, 1.0)
    monkeypatch.setenv("CXX", script(tmp_path / "bin", text))
    with pytest.raises(PrerequisiteError, match=says) as caught:
        _build.build_cpu()
    assert "CXX" in str(caught.value.hint)
    assert not list((tmp_path / "cache").glob("tmp*"))


def test_a_compiler_that_is_no_command_is_refused(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ 'half a quote")
    with pytest.raises(PrerequisiteError, match="CXX=g\\+\\+ 'half a quote is not a command"):
        _build.build_cpu()
    assert "no C++ compiler" in str(CpuOps().unavailable())


def test_what_a_killed_build_left_is_removed_and_a_running_one_is_not(sources: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name in ("tmp-cpu-dead", "tmp-cpu-alive", "tmpold12345"):
        (cache / name).mkdir(parents=True)
        (cache / name / "a.o").write_text("")
    os.utime(cache / "tmpold12345", (0, 0))
    with (cache / "cpu-alive.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _build.build_cpu()
        assert [path.name for path in cache.glob("tmp*")] == ["tmp-cpu-alive"]


def test_who_waits_for_another_build_is_told(sources: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); f.write('4711'); f.flush()"
    code += "; print(1, flush=True); sys.stdin.read()"
    path = cache / f"{_build.build_cpu().path.parent.name}.lock"
    shutil.rmtree(cache)
    cache.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=-1, stdout=-1, text=True)
    assert holder.stdin is not None and holder.stdout is not None
    holder.stdout.readline()
    told: list[str] = []

    def let_go_once_told() -> None:
        until = time.monotonic() + 60.0
        while not any("Waiting" in text for text in told) and time.monotonic() < until:
            time.sleep(0.01)
            told.append(capfd.readouterr().err)
        holder.stdin.close()

    watching = threading.Thread(target=let_go_once_told)
    watching.start()
    assert not _build.build_cpu().cached
    watching.join()
    said = "".join(told)
    assert "Waiting for process 4711, which is compiling the same kernels" in said and path.name in said
    assert holder.wait(30) == 0
    holder.stdout.close()
