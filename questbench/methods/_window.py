"""Sliding-window layers of a model as a policy: the newest entries are kept and all that is kept is read.

Such a layer is no choice of ours: the model was trained with it. Said in the words of a method, its cache can live in
our pages, where one entry takes the slot of the oldest, instead of in tensors that every step replaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from questbench.methods._base import Keep, Method


@dataclass(frozen=True)
class Window(Method):
    """A query sees the newest ``budget`` entries, its own included."""

    budgeted: ClassVar[bool] = False

    def keep_step(self) -> Keep:
        """What the next query sees besides itself."""
        return Keep(self.budget - 1, recent=self.budget - 1, by="age")
