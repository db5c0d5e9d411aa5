"""Every instruction-set path gives right answers, in a process of its own.

Compiling for less than the processor has takes minutes: those two are slow tests, built at the same time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from questbench._paths import kernel_sources
from questbench.kernels import _build
from questbench.kernels.cpu import CpuOps

PATHS = [pytest.param(isa, marks=[] if isa == "native" else pytest.mark.slow) for isa in _build.ISA_FLAGS]


@pytest.fixture(scope="session")
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """One process per instruction set that was asked for.

    The native library comes from the usual cache, the others share a folder of their own.
    """
    if reason := CpuOps().unavailable():
        pytest.skip(reason)
    cache = tmp_path_factory.mktemp("kernels")
    processes = {}
    asked = {item.callspec.params["isa"] for item in request.session.items if item.path == Path(__file__)}
    if "slow" not in str(request.config.getoption("-m") or ""):
        asked &= {"native"}
    for isa in asked:
        environment = {**os.environ, "QUESTBENCH_ISA": isa, "OMP_NUM_THREADS": "1"}
        if isa != "native":
            environment["QUESTBENCH_CACHE"] = str(cache)
        few = ["--few"] if asked == {"native"} else []
        command = [sys.executable, str(Path(__file__).with_name("isa_grid.py")), *few]
        processes[isa] = subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
    yield processes
    for process in processes.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("isa", PATHS)
def test_the_grid_passes(running: dict[str, subprocess.Popen[str]], isa: str) -> None:
    _, errors = running[isa].communicate(timeout=600)
    assert running[isa].returncode == 0, errors[-3000:]


@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_sources_are_right_for_lesser_processors(isa: str) -> None:
    """The compiler accepts them; whether they also compute right is the slow test's part."""
    if reason := CpuOps().unavailable():
        pytest.skip(reason)
    source = kernel_sources() / "cpu" / "steps_bf16.cpp"
    flags = [*_build.COMMON_FLAGS, *_build.ISA_FLAGS[isa], *_build.includes(kernel_sources())]
    done = subprocess.run(
        [*_build.compiler().command, *flags, "-fsyntax-only", str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
