"""Python processes that the command line starts: they find questbench, and nothing of the user's current folder."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

from questbench import _paths


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    out: str
    err: str
    why: str
    """Why it did not end well; empty if it did, or if it ended itself."""


def python(code: str, *arguments: str, seconds: float) -> Ended:
    """Run Python code in a process of its own.

    The folder that a user works in is not on its path (``-P``): a ``json.py`` that lies there is not ours to run.
    """
    paths = os.pathsep.join(filter(None, [str(_paths.CHECKOUT), _absolute(os.environ.get("PYTHONPATH", ""))]))
    command = [sys.executable, "-P", "-c", code, *arguments]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8:backslashreplace"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        out = error.stdout if isinstance(error.stdout, str) else (error.stdout or b"").decode("utf-8", "replace")
        return Ended(out, "", f"it does not end within {seconds:g} seconds")
    except OSError as error:
        return Ended("", "", f"{sys.executable} cannot be started: {error.strerror or error}")
    why = f"it crashes with signal {-done.returncode}" if done.returncode < 0 else ""
    return Ended(done.stdout, done.stderr, why)


def _absolute(paths: str) -> str:
    # An empty entry means the current folder, which is what -P keeps out.
    return os.pathsep.join(path for path in paths.split(os.pathsep) if path)
