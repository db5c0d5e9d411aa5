"""Every instruction-set path gives right answers, in a process of its own.

Compiling for less than the processor has takes minutes: those two are slow tests, built at the same time. The code for
AVX-512 is run on every x86 processor: where there is none, by functions that compute what its instructions do.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from questbench import _compiling
from questbench._paths import kernel_sources
from questbench.kernels import _build
from questbench.kernels.cpu import CpuOps

LESSER = ("avx2", "portable")
PATHS = ["native", *(pytest.param(isa, marks=pytest.mark.slow) for isa in LESSER)]
GRID = Path(__file__).with_name("isa_grid.py")
ALTERNATIVES = Path(__file__).parent.parent / "conformance" / "test_alternatives.py"


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
    own = [item for item in request.session.items if item.path == Path(__file__)]
    asked = {item.callspec.params["isa"] for item in own if item.originalname == "test_the_grid_passes"}
    if "slow" not in str(request.config.getoption("-m") or ""):
        asked &= {"native"}
    for isa in asked:
        environment = {**os.environ, "QUESTBENCH_ISA": isa, "OMP_NUM_THREADS": "1"}
        if isa != "native":
            environment["QUESTBENCH_CACHE"] = str(cache)
        few = ["--few"] if asked == {"native"} else []
        command = [sys.executable, str(GRID), *few]
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


def test_the_code_for_avx512_passes_without_it() -> None:
    """The grid, then attention by every alternative, those included that only AVX-512 with bf16 products has."""
    if reason := CpuOps().unavailable():
        pytest.skip(reason)
    has = _compiling.processor()
    if platform.machine() not in ("x86_64", "AMD64") or "avx2" not in has:
        pytest.skip("no x86 processor, or one without AVX2")
    if "avx512_bf16" in has:
        pytest.skip("this processor has it: the native library is that code")
    environment = {**os.environ, "QUESTBENCH_ISA": _build.EMULATED, "OMP_NUM_THREADS": "2"}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    alternatives = ["-m", "pytest", "-q", "-p", "no:xdist", str(ALTERNATIVES), "-k", "is_run or softcap"]
    for command in ([str(GRID), "--few"], alternatives):
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.mark.parametrize("isa", LESSER)
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
