"""Dense but for its prompts, which are read as another method reads them: the base of that method's forks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from questbench.methods._base import CacheShape, HeadGroup, Method, defines
from questbench.methods.dense import Dense

if TYPE_CHECKING:
    from torch import Tensor

    from questbench.cache import LayerCache


@dataclass(frozen=True)
class PromptOf(Dense):
    """Keeps and reads everything, behind a prompt that went through ``reader.read_prompt``."""

    reader: Method = field(kw_only=True)

    @property
    def needs_rotation(self) -> bool:
        """As the reader."""
        return self.reader.needs_rotation

    def head_groups(self, shape: CacheShape) -> tuple[HeadGroup, ...]:
        """The reader's groups, each with a prompt as its own method reads it."""
        groups = self.reader.head_groups(shape)
        return tuple(
            HeadGroup(own.heads, PromptOf(reader=own.method) if defines(own.method, "read_prompt") else Dense())
            for own in groups
        )

    def read_prompt(self, q: Tensor, k: Tensor, v: Tensor, layer: LayerCache, scoring: Any) -> Tensor:
        """The reader's."""
        return self.reader.read_prompt(q, k, v, layer, scoring)
