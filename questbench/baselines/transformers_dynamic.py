"""transformers' own decode step with its DynamicCache, over tensors that grow by a copy with every token."""

from __future__ import annotations

from typing import ClassVar

from questbench.baselines._base import Baseline, Decode, Fastest


class TransformersDynamic(Baseline):
    """Eager, by the fastest of torch's ways to attend."""

    verbs: ClassVar[tuple[str, ...]] = ("e2e",)
    asked: ClassVar[bool] = True

    def decode(self, run: Decode) -> Fastest:
        """See :meth:`Baseline.decode`."""
        from transformers import DynamicCache

        from questbench.baselines import _transformers

        def make() -> DynamicCache:
            return DynamicCache(config=run.model.config)

        return _transformers.decode(run, make, grows=True)
