"""Dense attention: every query reads every entry. The method the others are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from questbench.methods._base import Method


@dataclass(frozen=True)
class Dense(Method):
    """Reads all, keeps all; the budget is ignored."""

    budgeted: ClassVar[bool] = False

    def arguments(self, page_size: int) -> dict[str, object]:
        """Dense has no parameters."""
        return {}
