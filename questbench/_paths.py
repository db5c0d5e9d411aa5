"""Where the top-level folders are: beside this package in a wheel, one level up in a checkout."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent


def kernel_sources() -> Path:
    """Folder of the C++ and CUDA sources."""
    packaged = PACKAGE / "_csrc"
    return packaged if packaged.is_dir() else CHECKOUT / "kernels"


def task_folders() -> list[str]:
    """Extra folders of task modules; empty in a wheel, where tasks lie in ``questbench/tasks``."""
    return [str(CHECKOUT / "tasks")] if (CHECKOUT / "pyproject.toml").is_file() else []


def published_results() -> Path:
    """Folder of committed reference results (``paper.json`` and measured runs)."""
    packaged = PACKAGE / "_published"
    return packaged if packaged.is_dir() else CHECKOUT / "results" / "published"


def cache_folder() -> Path:
    """Folder for compiled kernels: ``$QUESTBENCH_CACHE`` or the user's cache folder."""
    if named := os.environ.get("QUESTBENCH_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "questbench"
