"""Several texts through one cache at once, each at its own pace: prefilled together, then one token per row and step.

Rows differ in length (padding on the left) and end at different steps; a row that has ended leaves the batch. Each row
is what it would be alone: attention and eviction know rows, and everything else in the model is token by token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from questbench.experiments.counting import RowCounters
from questbench.models import hf
from questbench.models.hf_cache import SparseCache
from questbench.models.static_loop import StaticLoop

Result = TypeVar("Result")
Script = Generator[int, "Tensor", Result]
"""What one row does: yields the token to feed next, is sent the logits ``[vocabulary]`` behind it, returns a result."""


class Batch:
    """Texts in a cache, and what transformers must be told about their padding.

    Args:
        model: the model that the cache was built for.
        cache: it grows by what is fed.
        mask: ``[B, columns]`` int64, 0 on padding; ``None`` where no row has any.
        logits: ``[B, vocabulary]`` behind the prefill, or of all its tokens.
    """

    def __init__(
        self, model: PreTrainedModel, cache: SparseCache, mask: Tensor | None = None, logits: Tensor | None = None
    ) -> None:
        self.model, self.cache, self.mask, self._logits = model, cache, mask, logits
        self._loop: StaticLoop | None = None

    @property
    def logits(self) -> Tensor:
        """``[B, vocabulary]`` behind the prefill, ``[B, tokens, vocabulary]`` if all were asked for."""
        assert self._logits is not None
        return self._logits

    @classmethod
    def prefill(
        cls,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        cache: SparseCache,
        *,
        all_logits: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> Batch:
        """Prefill ``prompts``, one row each; ``all_logits`` keeps those of every token.

        Args:
            progress: told (tokens done, tokens in all) after each part, unless all logits are kept.

        Raises:
            NotFiniteError: NaN or infinite logits, in whatever row.
        """
        longest = max(map(len, prompts))
        if all(len(prompt) == longest for prompt in prompts):
            whole = functools.partial(hf.forward, all_logits=True)
            read = whole if all_logits else functools.partial(hf.prefill, progress=progress)
            return cls(model, cache, None, read(model, prompts, cache))
        ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        mask = mask.to(next(model.parameters()).device)
        if all_logits:
            places = (mask.cumsum(1) - 1).clamp(min=0)
            logits = hf.forward(model, ids, cache, all_logits=True, attention_mask=mask, position_ids=places)
        else:
            logits = hf.prefill(model, ids, cache, mask=mask, progress=progress)
        return cls(model, cache, mask, logits)

    def on(self, cache: SparseCache) -> Batch:
        """The same texts in a fork of the cache."""
        return Batch(self.model, cache, self.mask)

    def feed(self, tokens: Sequence[int]) -> Tensor:
        """One decode step: a token for every row; logits ``[B, vocabulary]``, good until the next step."""
        if self._loop is None:
            self._loop = StaticLoop(self.model, self.cache, mask=self.mask)
        logits = self._loop.feed(tokens)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones((len(tokens), 1))], dim=1)
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        chosen = torch.tensor(rows)
        self.cache.batch_select_indices(chosen)
        self._loop = None
        if self.mask is not None:
            self.mask = self.mask[chosen.to(self.mask.device)]

    def play(self, scripts: Sequence[Script[Result]], counters: RowCounters | None = None) -> list[Result]:
        """Run one script per row to its end; results in the order of the rows.

        Raises:
            NotFiniteError: NaN or infinite logits, in whatever row.
        """
        results: dict[int, Result] = {}
        active: list[int] = []
        tokens: list[int] = []
        for row, script in enumerate(scripts):
            _advance(script, None, row, active, tokens, results)
        if active and len(active) < len(scripts):
            self.keep(active)
        while active:
            if counters is not None:
                counters.active = active
            logits = self.feed(tokens)
            before, active, tokens = active, [], []
            for place, row in enumerate(before):
                _advance(scripts[row], logits[place], row, active, tokens, results)
            if active and len(active) < len(before):
                self.keep([before.index(row) for row in active])
        return [results[row] for row in range(len(scripts))]


def _advance(
    script: Script[Any], logits: Tensor | None, row: int, active: list[int], tokens: list[int], results: dict[int, Any]
) -> None:
    """Send a script its logits; note the token that it wants to feed, or its result."""
    try:
        token = next(script) if logits is None else script.send(logits)
    except StopIteration as stop:
        results[row] = stop.value
    else:
        active.append(row)
        tokens.append(token)
