"""Processes of scripts/gpu_suite.py and gpu_sanitize.py that end together with all that they have started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent


def start(command: list[str], output: int | IO[str] = subprocess.PIPE, **more: str) -> subprocess.Popen[str]:
    """A process at the head of a group of its own, so that whatever it starts can be ended with it.

    Args:
        output: where output and errors go: a file where nobody reads meanwhile, since a full pipe would stop it.
        more: environment beside this process's.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; children would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environment(), **more},
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def end_group(process: subprocess.Popen[str], at_once: bool = False) -> str:
    """End a process and all that it started: what is left on the device would be timed. Returns its last output.

    First as Ctrl-C does, so that pytest still says what failed; ``at_once`` spares that.
    """
    for sent, patience in ((signal.SIGINT, 8.0), (signal.SIGKILL, 5.0)):
        if at_once and sent is signal.SIGINT:
            continue
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sent)
        if at_once:
            return ""
        try:
            text, _ = process.communicate(timeout=patience)
        except (subprocess.TimeoutExpired, ValueError):
            continue
        if sent is signal.SIGINT:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # children that took no notice
        return text or ""
    return ""


def environment() -> dict[str, str]:
    """This process's, with the checkout importable."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths, "TRANSFORMERS_VERBOSITY": "error"}
