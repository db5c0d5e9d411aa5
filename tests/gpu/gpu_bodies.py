"""What the GPU tests share: the device, the backend, tensors that travel, and bodies of CPU tests to run there.

``pytest -m gpu`` runs them on a CUDA device. ``QUESTBENCH_GPU_TESTS=cpu pytest -m gpu tests/gpu`` runs the same bodies
on the CPU backend, which shows that the tests themselves are right where there is no GPU.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from questbench import kernels, registry
from questbench.errors import QuestbenchError
from questbench.kernels._ops import Ops
from questbench.kernels._paged import Paged

TESTS = Path(__file__).resolve().parent.parent
DEVICE = os.environ.get("QUESTBENCH_GPU_TESTS", "cuda")
REHEARSED = DEVICE == "cpu"

DTYPES = (torch.float16, torch.bfloat16)
HEAD_DIMS = (64, 128, 256)
PAGE_SIZES = (8, 16, 32, 64)
GROUP_MAX = 16
"""What the CUDA kernels promise. Shapes beyond it are skipped where a CPU test's body has them."""


def backend() -> Ops:
    """The device's own backend; the test is skipped, with the reason, where it does not work."""
    if DEVICE not in registry.names(kernels.PACKAGE):
        pytest.skip(f"this version has no backend named {DEVICE}")
    try:
        return kernels.load(DEVICE)
    except QuestbenchError as error:
        pytest.skip(error.message)


def flashinfer(monkeypatch: pytest.MonkeyPatch) -> Ops:
    """FlashInfer; in a rehearsal the interface that stands for it in tests/kernels."""
    from questbench.kernels import flashinfer as module

    if REHEARSED:
        from fake_flashinfer import LIBRARY

        monkeypatch.setattr(module, "library", lambda: LIBRARY)
        monkeypatch.setattr(module, "WORKSPACE_BYTES", 1 << 10)
        return module.FlashInferOps()
    if reason := module.FlashInferOps().unavailable():
        pytest.skip(reason)
    return kernels.load("flashinfer")


def load(path: str, **replaced: Any) -> ModuleType:
    """A test module under another name, with some of its names replaced: its bodies then run with those."""
    name = f"gpu_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, TESTS / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    for key, value in replaced.items():
        assert hasattr(module, key), f"{path} has no {key}"
        setattr(module, key, value)
    return module


def bodies_of(module: ModuleType, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The test functions of a module by name, less some."""
    missing = [name for name in without if not hasattr(module, name)]
    assert not missing, f"{module.__name__} has no {missing}"
    return {n: body for n, body in vars(module).items() if n.startswith("test_") and n not in without}


class OnDevice(Ops):
    """Takes CPU tensors to a device, with their strides and what lies between them, and brings back what was written.

    So a CPU test's body runs on a GPU as it stands. Shapes outside the promise skip the test.
    """

    def __init__(self, inner: Ops, device: str) -> None:
        self.inner, self.device_name = inner, device

    @property
    def name(self) -> str:
        return self.inner.name

    def unavailable(self) -> str | None:
        return self.inner.unavailable()

    def append(self, k: Tensor, v: Tensor, paged: Paged, new: Tensor | None = None) -> None:
        promised(paged)
        self._there("append", k, v, paged, new)

    def score(self, q: Tensor, paged: Paged, **options: Any) -> Tensor:
        promised(paged, group=q.shape[1] // paged.kv_heads)
        out: Tensor = self._there("score", q, paged, **options)
        return out

    def select(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        promised(group=options.get("group", 1))
        lists: tuple[Tensor, Tensor] = self._there("select", *arguments, **options)
        return lists

    def attend(self, q: Tensor, paged: Paged, scale: float, **options: Any) -> Tensor:
        promised(paged, group=q.shape[1] // paged.kv_heads)
        out: Tensor = self._there("attend", q, paged, scale, **options)
        return out

    def attend_top(self, q: Tensor, paged: Paged, scale: float, **options: Any) -> Tensor:
        promised(paged, group=q.shape[1] // paged.kv_heads)
        out: Tensor = self._there("attend_top", q, paged, scale, **options)
        return out

    def evict(self, paged: Paged, *rest: Any, **options: Any) -> None:
        promised(paged)
        self._there("evict", paged, *rest, **options)

    def _there(self, op: str, *arguments: Any, **options: Any) -> Any:
        moved: dict[int, tuple[Tensor, Tensor]] = {}

        def there(value: Any) -> Any:
            if isinstance(value, Paged):
                return Paged(*map(there, value))
            if not isinstance(value, Tensor):
                return value
            storage = value.untyped_storage()
            if storage.data_ptr() not in moved:
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                moved[storage.data_ptr()] = whole, whole.to(self.device_name, copy=True)
            far = moved[storage.data_ptr()][1].view(value.dtype)
            return far.as_strided(value.shape, value.stride(), value.storage_offset())

        out = getattr(self.inner, op)(*map(there, arguments), **{name: there(x) for name, x in options.items()})
        for near, far in moved.values():
            near.copy_(far)
        return tuple(x.cpu() for x in out) if isinstance(out, tuple) else None if out is None else out.cpu()


def promised(
    paged: Paged | None = None,
    *,
    dtype: torch.dtype | None = None,
    dim: int | None = None,
    page_size: int | None = None,
    group: int = 1,
) -> None:
    """Skip what the kernels do not promise."""
    if paged is not None:
        dtype, dim, page_size = paged.k.dtype, paged.head_dim, paged.page_size
    beyond = [
        str(value)
        for value, known in ((dtype, DTYPES), (dim, HEAD_DIMS), (page_size, PAGE_SIZES))
        if value is not None and value not in known
    ]
    if beyond or group > GROUP_MAX:
        pytest.skip(f"the CUDA kernels do not promise this: {', '.join(beyond) or f'groups of {group}'}")
