"""SnapKV: the prompt's last queries say what to keep of it (Li et al., NeurIPS 2024, https://arxiv.org/abs/2404.14469).

    v    = sum of the attention probabilities of the prompt's last `window` queries     one vote per entry and head
    v'   = avg_pool1d(v, kernel), stride 1, over the entries before the window          neighbours of the voted stay too
    keep = the window + the entries with the largest v'                                 once, at the prompt's end

Decode steps drop nothing, so that the cache grows by one entry per generated token: ``budget`` counts at the first step
(``budget - 1`` entries of the prompt and the new one), ``generated - 1`` more are visible later. A prompt of up to
``budget - 1`` tokens is kept whole.

Deviations: under GQA the votes of a group's query heads are summed before they are pooled, and a KV head has one set;
the released code stores keys once per query head and keeps a set for each, which costs group times the memory. A later
turn of several tokens is a prompt again: what is resident then competes by the votes of that turn's last queries, and
neighbours are those in the cache. Where a turn has fewer queries than the window, those there are vote; the window of
entries is full all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from questbench.errors import UsageError
from questbench.methods._base import Keep, Method, PromptMass, at_least

if TYPE_CHECKING:
    from torch import Tensor

    from questbench.cache import LayerCache


@dataclass(frozen=True)
class SnapKV(Method):
    """Keeps of a prompt what its last queries attend to, with its neighbours; drops nothing while decoding."""

    window: int = 32
    """The prompt's last entries, which are kept, and whose queries vote on the others."""
    kernel: int = 5
    """Entries that votes are pooled over; odd, 1 for no pooling."""
    pooling: Literal["avg", "max"] = "avg"
    """How: their mean, zeros beyond the ends included, or their maximum."""

    @property
    def prompt_mass(self) -> PromptMass:
        """The attention of the window's queries."""
        return self.window

    def judge(self, layer: LayerCache, mass: Tensor) -> Tensor:
        """Votes pooled over neighbours; the window is kept without them."""
        from torch.nn.functional import avg_pool1d, max_pool1d

        pool, votes = avg_pool1d if self.pooling == "avg" else max_pool1d, mass.clone()
        for row, held in enumerate(layer.held):
            voted = mass[row, :, : max(held - self.window, 0)]
            if voted.shape[1]:
                votes[row, :, : voted.shape[1]] = pool(voted, self.kernel, stride=1, padding=self.kernel // 2)
        return votes

    def keep_prompt(self) -> Keep:
        """The window and the best of the rest."""
        return Keep(self.budget - 1, recent=self.window, by="mass")

    def check(self, page_size: int) -> None:
        """A window, one entry that it votes for and the new one; a kernel with a middle."""
        if self.window < 1 or self.kernel % 2 == 0:
            raise UsageError(
                f"snapkv needs a window of at least 1 and an odd kernel, not {self.window} and {self.kernel}.",
                "Use -M snapkv.window=32 -M snapkv.kernel=5.",
            )
        at_least(self, self.window + 2, f"a window of {self.window}, one entry more and the new one")

    def tokens_visible(self, length: int, page_size: int, generated: int = 1) -> int:
        """What was kept of the prompt and all that came since: ``generated`` tokens, the new one included."""
        return min(length, self.budget - 1 + generated)
