"""Failures told apart: those for want of memory, and those of one sample or cell alone."""

from __future__ import annotations

import gc

from questbench.errors import CellError, NotFiniteError, QuestbenchError, first_line
from questbench.measure.memory import out_of_memory


def apart(error: BaseException) -> bool:
    """Whether the samples of a batch are to be tried apart: for lack of memory, or since one of them spoils it."""
    return out_of_memory(error) or isinstance(error, NotFiniteError)


def told(error: BaseException) -> str:
    """What went wrong and what to do, for a record."""
    if isinstance(error, QuestbenchError):
        return f"{error.message} {error.hint or ''}".strip()
    return str(error) or type(error).__name__


def reason(error: BaseException) -> str:
    """One line for the record of a sample that fails even alone."""
    return told(error) if isinstance(error, CellError) else f"Out of memory at batch 1: {first_line(error)}"


def spoiled(error: Exception, *, several: bool) -> QuestbenchError | str:
    """What the rows of a cell say that failed on a batch.

    Args:
        several: the batch holds more than one sample, which may go through one at a time.

    Raises:
        Exception: ``error`` itself, where the samples are to be tried apart or the run has to end.
    """
    if isinstance(error, CellError) and not isinstance(error, NotFiniteError):
        return error
    if several or not apart(error):
        raise error
    return reason(error)


def no_memory(error: BaseException, device: str) -> CellError:
    """What a cell says that ran out of memory although it seemed to fit."""
    return CellError(f"out of memory on {device}: {first_line(error)}", "Use a shorter --seq-len or a smaller --batch.")


def give_back(device: str) -> None:
    """Let the next cell have what this one held."""
    gc.collect()
    if device != "cpu":
        import torch

        torch.cuda.empty_cache()
