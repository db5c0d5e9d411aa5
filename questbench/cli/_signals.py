"""Signals that ask a run to end: it keeps what is finished and says how to go on, whichever of them it was."""

from __future__ import annotations

import signal
from types import FrameType

_asked: list[int] = []


def prepare() -> None:
    """Treat SIGTERM and SIGHUP as Ctrl-C; a signal that is ignored (``nohup``) stays ignored."""
    _asked.clear()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _ask)


def asked() -> bool:
    """Whether one has come: code that was interrupted may have made another error of it."""
    return bool(_asked)


def finish() -> None:
    """The work is done: from here on a signal ends the process at once and without a word."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == _ask:
            signal.signal(number, signal.SIG_DFL)


def _ask(number: int, frame: FrameType | None) -> None:
    _asked.append(number)
    raise KeyboardInterrupt
