"""H2O: heavy-hitter oracle (Zhang et al., NeurIPS 2023, https://arxiv.org/abs/2306.14048), the real-drop algorithm.

    acc_t = acc_{t-1} + p_t                 running sum of attention probabilities per entry and KV head
    keep  = recent window  +  the heaviest of the rest by acc

Deviations: under GQA the probabilities of a group's query heads are summed (the original drops GQA models); sums are
fp32; heavy and recent share the budget half and half, so that budget B means B visible entries: B // 2 heavy ones,
B - 1 - B // 2 recent ones, and the new one. ``score_from="prefill"`` sums the prompt's queries too, as H2O does and as
its strongest form; ``"decode"`` is the Quest paper's set-up, where a flash prefill yields no probabilities: the first
question token reads everything, and the heavy set is judged by that row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from questbench.methods._base import CacheShape, Keep, Method, PromptMass, at_least

if TYPE_CHECKING:
    from questbench.kernels._ops import MassMode


@dataclass(frozen=True)
class H2O(Method):
    """Keeps the entries with the largest accumulated attention, and a recent window."""

    score_from: Literal["prefill", "decode"] = "prefill"
    """Where accumulation starts."""

    step_mass: ClassVar[MassMode] = "sum"

    @property
    def prompt_mass(self) -> PromptMass:
        """Column sums of the prompt's attention."""
        return "sum" if self.score_from == "prefill" else 0

    @property
    def warmup_steps(self) -> int:
        """The step that judges everything reads everything."""
        return 0 if self.score_from == "prefill" else 1

    def keep_prompt(self) -> Keep | None:
        """Without scores from the prefill nothing can be dropped before the first step."""
        return self.keep_step() if self.score_from == "prefill" else None

    def keep_step(self) -> Keep:
        """Half the budget heavy, half recent."""
        return Keep(self.budget - 1, recent=self.budget - 1 - self.budget // 2, by="mass")

    def check(self, page_size: int) -> None:
        """One heavy and one recent entry beside the new one."""
        at_least(self, 3, "a heavy entry, a recent one and the new one")

    def bytes_read(self, length: int, shape: CacheShape) -> int:
        """Keys and values of what is resident; the running sum is read and written besides."""
        return (shape.entry_bytes + 8 * shape.kv_heads) * min(length, self.budget)
