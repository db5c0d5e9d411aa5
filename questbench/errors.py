"""Errors that a user can act on, and the exit codes they map to.

Exit codes: 0 ok, 1 unexpected, 2 usage, 3 prerequisite missing, 4 some cells failed, 5 regression found,
130 interrupted. :class:`QuestbenchError` and its children are shown as "what, why, next step" without a
traceback; everything else is a bug and exits with 1.
"""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What the process tells its caller."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    PREREQUISITE = 3
    CELLS_FAILED = 4
    REGRESSION = 5
    INTERRUPTED = 130


class QuestbenchError(Exception):
    """A failure with a message for the user and a next step.

    Args:
        message: what went wrong and why, one or two sentences.
        hint: the next thing to do, usually a command; ``None`` where the message says it all.
    """

    exit_code = ExitCode.UNEXPECTED

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(QuestbenchError):
    """A value that no cell of the run can satisfy (exit 2)."""

    exit_code = ExitCode.USAGE


class PrerequisiteError(QuestbenchError):
    """Something the run needs is not there: backend, compiler, model, run, writable folder (exit 3)."""

    exit_code = ExitCode.PREREQUISITE


class CellError(QuestbenchError):
    """One cell of a sweep cannot run; it becomes a record with this reason (exit 4 if any failed)."""

    exit_code = ExitCode.CELLS_FAILED


class SkipCell(QuestbenchError):
    """One cell of a sweep makes no sense here; it becomes a skipped record with this reason."""

    exit_code = ExitCode.CELLS_FAILED


class NotFiniteError(CellError):
    """The model's logits hold NaN or infinity: whatever is computed from them means nothing (a failed cell).

    Args:
        dtype: what the model computes in, as ``--dtype`` names it: fp16, bf16 or fp32.
        where: what was being computed, such as ``"the logits of a decode step"``.
    """

    def __init__(self, dtype: str, where: str = "the model's logits") -> None:
        super().__init__(
            f"NaN or infinity in {where}: the model has left the range of {dtype}.",
            "Use --dtype fp32." if dtype == "bf16" else "Use --dtype bf16 or --dtype fp32.",
        )
        self.dtype = dtype


def first_line(error: BaseException) -> str:
    """What a library says of its failure, in one line that a message can hold."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()[:300]
