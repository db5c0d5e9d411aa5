"""Copies of the kernel sources with one planted mistake, to show that the tests would find it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import building

from questbench._paths import kernel_sources

HERE = Path(__file__).resolve().parent
SECONDS = 240
"""A mutant that takes longer than this hangs."""


@dataclass(frozen=True)
class Mutation:
    """One change of one file."""

    name: str
    file: str
    """Path below the folder of sources."""
    pattern: str
    """Regular expression that occurs exactly once in it, or that is told apart by ``occurrence``."""
    replacement: str
    occurrence: int | None = None

    def apply(self, text: str) -> str:
        """The changed source.

        Raises:
            ValueError: the pattern occurs not once, or the change changes nothing. Then the mutation must be rewritten
                along with the source that it no longer fits.
        """
        found = list(re.finditer(self.pattern, text))
        if self.occurrence is None and len(found) != 1:
            raise ValueError(f"mutation '{self.name}': {self.pattern!r} is {len(found)} times in {self.file}, not once")
        place = found[self.occurrence or 0]
        changed = text[: place.start()] + place.expand(self.replacement) + text[place.end() :]
        if changed == text:
            raise ValueError(f"mutation '{self.name}' changes nothing")
        return changed

    def copy(self, root: Path, folder: Path) -> Path:
        """A copy of the sources under ``root`` in ``folder``, changed."""
        shutil.copytree(root, folder, dirs_exist_ok=True)
        target = folder / self.file
        target.write_text(self.apply(target.read_text()))
        return folder


def sweep(file: str) -> list[Mutation]:
    """Every barrier of a source left out, every wait for copies weakened, one at a time."""
    text = (kernel_sources() / file).read_text()
    rules = [(r"__sync(threads|warp)\(\);", ";"), (r"copy_wait<(\w+)>", r"copy_wait<\1 + 1>")]
    out = []
    for pattern, replacement in rules:
        for at, place in enumerate(re.finditer(pattern, text)):
            line = text.count("\n", 0, place.start()) + 1
            out.append(Mutation(f"{file}:{line} {place.group()}", file, pattern, replacement, at))
    return out


def caught(mutation: Mutation, ops: Sequence[str], folder: Path) -> str | None:
    """How the quick checks of some ops find the mutation, or ``None`` if they do not.

    In a process of its own: a mutant may hang, or write anywhere.

    Raises:
        PrerequisiteError: the mutant does not compile, which shows nothing.
    """
    library = building.build_emulator(root=mutation.copy(kernel_sources(), folder)).path
    return check(library, *ops)


def check(library: Path, *ops: str) -> str | None:
    """What the quick checks of the ops say of a library, or ``None`` if it passes."""
    command = [sys.executable, str(HERE / "quick_checks.py"), str(library), *ops]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"hangs for {SECONDS} s"
    if done.returncode == 0:
        return None
    if done.returncode == 3:
        return done.stdout
    if done.returncode < 0:
        return f"ends by signal {-done.returncode}"
    raise RuntimeError(f"the check itself failed:\n{done.stderr}")
