"""The CPU kernels under an address sanitizer: no read and no write outside of a tensor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import sanitized_grid
import torch

from questbench import kernels
from questbench.kernels import _build
from questbench.kernels._operators import OPERATORS
from questbench.kernels.cpu import CpuOps

GRID = Path(__file__).with_name("sanitized_grid.py")


@pytest.mark.parametrize("by_channel", [False, True])
def test_the_grid_calls_every_op(by_channel: bool) -> None:
    watched = Mock(wraps=kernels.load("cpu"))
    sanitized_grid.run(watched, torch.float16, *sanitized_grid.SHAPES[0], by_channel)
    assert {called for called, *_ in watched.method_calls} == set(OPERATORS)


@pytest.mark.slow
def test_no_kernel_leaves_its_tensors(tmp_path: Path) -> None:
    if reason := CpuOps().unavailable():
        pytest.skip(reason)
    command = _build.compiler().command
    asked = [*command, "-print-file-name=libasan.so"]
    library = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    if not library.is_absolute():
        pytest.skip("the compiler has no address sanitizer")
    environment = {**os.environ, "QUESTBENCH_CACHE": str(tmp_path), "OMP_NUM_THREADS": "2"}
    environment["CXX"] = f"{' '.join(command)} -fsanitize=address -fno-omit-frame-pointer"
    environment.pop("QUESTBENCH_CHECK", None)
    build = "from questbench.kernels import _build; print(_build.build_cpu().path)"
    subprocess.run([sys.executable, "-c", build], env=environment, check=True, timeout=1200)
    environment["LD_PRELOAD"] = str(library)
    environment["ASAN_OPTIONS"] = "detect_leaks=0:alloc_dealloc_mismatch=0:verify_asan_link_order=0"
    for more, clean in (([], True), (["--overrun"], False)):
        run = [sys.executable, str(GRID), *more]
        done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=1200, check=False)
        assert ("AddressSanitizer" in done.stderr) is not clean, done.stderr[-4000:]
        assert (done.returncode == 0) is clean, done.stderr[-4000:]
