"""Copies of the kernel sources with one planted mistake, to show that the tests would find it."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutation:
    """One change of one file."""

    name: str
    file: str
    """Path below the folder of sources."""
    pattern: str
    """Regular expression that occurs exactly once in it."""
    replacement: str

    def apply(self, text: str) -> str:
        """The changed source.

        Raises:
            ValueError: the pattern occurs not once, or the change changes nothing. Then the mutation must be rewritten
                along with the source that it no longer fits.
        """
        found = len(re.findall(self.pattern, text))
        if found != 1:
            raise ValueError(f"mutation '{self.name}': {self.pattern!r} occurs {found} times in {self.file}, not once")
        changed = re.sub(self.pattern, self.replacement, text)
        if changed == text:
            raise ValueError(f"mutation '{self.name}' changes nothing")
        return changed

    def copy(self, root: Path, folder: Path) -> Path:
        """A copy of the sources under ``root`` in ``folder``, changed."""
        shutil.copytree(root, folder, dirs_exist_ok=True)
        target = folder / self.file
        target.write_text(self.apply(target.read_text()))
        return folder
