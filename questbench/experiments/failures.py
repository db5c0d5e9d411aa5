"""Failures told apart: those for want of memory, and those of one sample or cell alone."""

from __future__ import annotations

import errno

from questbench.errors import CellError, NotFiniteError


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory was not enough, on whatever device."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # The CPU allocator, and cuBLAS when it makes its workspace, raise a plain RuntimeError.
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        mark in text for mark in ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )


def apart(error: BaseException) -> bool:
    """Whether the samples of a batch are to be tried apart: for lack of memory, or since one of them spoils it."""
    return out_of_memory(error) or isinstance(error, NotFiniteError)


def reason(error: BaseException) -> str:
    """One line for the record of a sample that fails even alone."""
    if isinstance(error, CellError):
        return f"{error.message} {error.hint or ''}".strip()
    first = str(error).strip().partition("\n")[0]
    return f"Out of memory at batch 1: {first or type(error).__name__}"
