"""A sample as it runs: tokenised and split into what is prefilled and what is fed token by token."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from questbench.experiments.accuracy.protocol import Prompt
from questbench.tasks._base import Sample


@dataclass(frozen=True)
class Prepared:
    """A sample, tokenised and split."""

    sample: Sample
    prompt: Prompt
    max_new_tokens: int
    context_tokens: int
    """Tokens of the sample's own context, which a stream's prefill may exceed."""

    @property
    def hash(self) -> str:
        """Of all token ids: the same prompt has the same hash, whatever the cell."""
        ids = self.prompt.prefill + self.prompt.steps + tuple(turn.tokens for turn in self.prompt.later)
        return hashlib.sha256(repr(ids).encode()).hexdigest()[:16]
