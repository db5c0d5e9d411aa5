"""Checks and settings that the experiments share: device, backend, dtype, threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from questbench.errors import PrerequisiteError, UsageError

if TYPE_CHECKING:
    import torch

    from questbench.kernels._ops import Ops

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
DEFAULT_BACKEND = {"cpu": "cpu", "cuda": "cuda"}
PAGE_SIZES = (4, 8, 16, 32, 64, 128)


def check_machine(device: str, backend: str | None, dtype: str, page_sizes: Sequence[int], threads: int | None) -> None:
    """Refuse a device, backend, dtype, page size or thread count that no cell can run with.

    Raises:
        UsageError: the value is not one of the known ones.
        PrerequisiteError: the device or the backend does not work on this machine.
    """
    if dtype not in DTYPES:
        raise UsageError(f"Unknown dtype '{dtype}'. Known: {', '.join(DTYPES)}.", "Use --dtype bf16.")
    for size in page_sizes:
        if size not in PAGE_SIZES:
            raise UsageError(
                f"Page size {size} is not one of {', '.join(map(str, PAGE_SIZES))}.", "Use --page-size 16."
            )
    if threads is not None and not 1 <= threads <= (os.cpu_count() or 1):
        raise UsageError(f"--threads {threads}: this machine has {os.cpu_count()} cores.", "Leave --threads out.")
    ops = load_ops(device, backend)
    if dtype not in ops.dtypes:
        raise UsageError(
            f"Backend '{ops.name}' stores {' and '.join(ops.dtypes)}, not {dtype}.", f"Use --dtype {ops.dtypes[-1]}."
        )


def load_ops(device: str, backend: str | None) -> Ops:
    """The backend to run on a device: the one named, or the device's own.

    Raises:
        UsageError: unknown backend or device.
        PrerequisiteError: it does not work here.
    """
    from questbench import kernels

    if device not in DEFAULT_BACKEND:
        raise UsageError(f"Unknown device '{device}'. Known: {', '.join(DEFAULT_BACKEND)}.", "Use --device cpu.")
    if device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise PrerequisiteError("There is no usable CUDA device.", "See: questbench doctor. Or use --device cpu.")
    name = DEFAULT_BACKEND[device] if backend is None else backend
    kind = kernels.load_class(name)
    if kind.device not in (device, "any"):
        raise UsageError(
            f"Backend '{name}' works on {kind.device}, not on {device}.",
            f"Use --device {kind.device}, or leave --backend out.",
        )
    return kernels.load(name)


def torch_dtype(name: str) -> torch.dtype:
    """``bf16`` -> ``torch.bfloat16``."""
    import torch

    return getattr(torch, DTYPES[name])  # type: ignore[no-any-return]


@contextlib.contextmanager
def thread_count(threads: int | None) -> Iterator[int]:
    """Set torch's threads (all cores by default) for the block; yields the number."""
    import torch

    before = torch.get_num_threads()
    count = threads or os.cpu_count() or 1
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)
