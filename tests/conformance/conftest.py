"""One suite for every compiled backend: cpu, the CUDA kernels in the block emulator, and with ``-m gpu`` on a device.

``reference`` is what they are compared with. Cases outside of a backend's limits are left out, by the names of their
parameters: ``dtype``, ``dim``, ``page_size``, ``group``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).resolve().parent
for _folder in ("kernels", "emulator", "gpu"):
    sys.path.insert(0, str(HERE.parent / _folder))


from conformance_backends import BACKENDS, Backend  # noqa: E402

from questbench.errors import UsageError  # noqa: E402


@pytest.fixture(
    scope="session",
    params=[pytest.param(one, id=name, marks=[pytest.mark.gpu] * (name == "cuda")) for name, one in BACKENDS.items()],
)
def backend(request: pytest.FixtureRequest) -> Backend:
    """What the tests of this folder run over."""
    one: Backend = request.param
    return one


@pytest.fixture
def ops(backend: Backend) -> Any:
    """The backend's ops."""
    return backend.load()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads only cost time. Tests of threads ask for them, and the number is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what a backend has no kernels for."""
    items[:] = [item for item in items if HERE not in item.path.parents or _fits(item)]


def _fits(item: pytest.Item) -> bool:
    given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    one = given.get("backend")
    if one is None:
        return True
    group, size = given.get("group", 1), given.get("page_size", 16)
    try:
        one.limits.check(one.name, query_heads=group, kv_heads=1, head_dim=given.get("dim", 64), page_size=size)
    except UsageError:
        return False
    return given.get("dtype", one.dtypes[0]) in one.dtypes
