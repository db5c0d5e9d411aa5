"""transformers' own decode step with its StaticCache, over buffers made for the whole text."""

from __future__ import annotations

from typing import ClassVar

from questbench.baselines._base import Baseline, Decode, Fastest


class TransformersStatic(Baseline):
    """Eager, by the fastest of torch's ways to attend."""

    verbs: ClassVar[tuple[str, ...]] = ("e2e",)
    asked: ClassVar[bool] = True

    def decode(self, run: Decode) -> Fastest:
        """See :meth:`Baseline.decode`."""
        from transformers import StaticCache

        from questbench.baselines import _transformers

        def make() -> StaticCache:
            return StaticCache(config=run.model.config, max_cache_len=run.seq_len + run.room)

        return _transformers.decode(run, make, grows=False)
