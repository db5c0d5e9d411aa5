"""TOVA: token omission via attention (Oren et al., EMNLP 2024, https://arxiv.org/abs/2401.06104).

    w    = mean over all query heads of this step's attention probabilities       one weight per entry of the layer
    keep = the budget - 1 entries with the largest w                              the same set for every KV head

Deviations: entries are ranked by fp32 probabilities; the original casts the softmax to the model's dtype first, so that
in bf16 or fp16 it sees ties among small weights where we see an order. The mean is a sum over heads here, which ranks
alike. After the prompt the last row of the prefill decides in one shot, as upstream does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from questbench.methods._base import CacheShape, Keep, Method, PromptMass, at_least

if TYPE_CHECKING:
    from questbench.kernels._ops import MassMode


@dataclass(frozen=True)
class TOVA(Method):
    """Keeps the entries that the newest query attends to most."""

    step_mass: ClassVar[MassMode] = "last"

    @property
    def prompt_mass(self) -> PromptMass:
        """The attention of the prompt's last query."""
        return 1

    def keep_step(self) -> Keep:
        """The heaviest entries of this step; the newest is not protected."""
        return Keep(self.budget - 1, by="mass", shared=True)

    def check(self, page_size: int) -> None:
        """One kept entry beside the new one."""
        at_least(self, 2, "one kept entry and the new one")

    def bytes_read(self, length: int, shape: CacheShape) -> int:
        """Keys and values of what is resident; this step's probabilities are written and read besides."""
        return (shape.entry_bytes + 8 * shape.kv_heads) * min(length, self.budget)
