"""What all tests share: which are skipped by default, and a command line without a process of its own."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pairs import leave_every_pair

ROOT = Path(__file__).resolve().parent.parent
# Workers of pytest-xdist share the processors.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    each = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(each))
# Here, not in a hook: conftest files of folders load backends before hooks run. What tensors hold is checked too.
os.environ["QUESTBENCH_CHECK"] = "1"
# No test waits for a measurement, or depends on one; tests of the choices make their own.
os.environ.setdefault("QUESTBENCH_CHOICE", "default")


@dataclass(frozen=True)
class Ended:
    """How a command line ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def questbench(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Runs ``questbench ARGUMENTS`` in this process."""
    monkeypatch.delenv("QUESTBENCH_DEBUG", raising=False)

    def run(*arguments: object) -> Ended:
        from questbench.cli.main import invoke

        capfd.readouterr()
        code = invoke([str(argument) for argument in arguments])
        shown = capfd.readouterr()
        return Ended(code, shown.out, shown.err)

    return run


@pytest.fixture(params=["reference", "cpu"])
def ops(request: pytest.FixtureRequest) -> Any:
    """Every CPU backend; a test with it runs once per backend."""
    from questbench import kernels
    from questbench.errors import PrerequisiteError

    try:
        return kernels.load(request.param)
    except PrerequisiteError as error:
        pytest.skip(error.message)


def pytest_configure() -> None:
    # Processes that tests start import the checkout too, installed or not.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = str(config.getoption("-m") or "")
    leave_every_pair(items)
    for item in items:
        if "slow" in item.keywords and "slow" not in chosen:
            item.add_marker(pytest.mark.skip(reason="slow: run it with -m slow"))
        # QUESTBENCH_GPU_TESTS=cpu rehearses those of tests/gpu and tests/conformance on the CPU backend.
        rehearsed = item.path.parent.name in ("gpu", "conformance") and os.environ.get("QUESTBENCH_GPU_TESTS") == "cpu"
        if "gpu" in item.keywords and not rehearsed and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="gpu: no CUDA device here"))


def pytest_collection_finish() -> None:
    """Modules are loaded: collections of garbage, of which every timing begins with one, pass them by from now on."""
    gc.collect()
    gc.freeze()


@functools.cache
def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
