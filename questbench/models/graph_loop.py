"""The decode loop as one CUDA graph: the whole step, sampling included, is launched at once.

The first steps run one by one: they compile, warm up and let methods drop what they drop after a prompt. Then every
layer becomes a :class:`StaticLayer`, the step is captured, and each later step is one replay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from questbench.errors import PrerequisiteError, UsageError
from questbench.models._static_layer import StaticLayer
from questbench.models.hf_cache import MethodLayer, SparseCache
from questbench.models.static_loop import StaticLoop

FIRST = 3
"""Steps before the capture: kernels are built and libraries make their workspaces in them."""
LOOK_EVERY = 16
"""Steps between two looks at the end-of-text flags: each waits for the device."""

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Turns a step into something that repeats it."""


def capture(step: Callable[[], None]) -> Callable[[], None]:
    """Record a step as a CUDA graph; calling the result replays it."""
    cuda: Any = torch.cuda
    graph = cuda.CUDAGraph()
    cuda.synchronize()
    with cuda.graph(graph):
        step()
    replay: Callable[[], None] = graph.replay
    return replay


class GraphLoop(StaticLoop):
    """Greedy decode steps by replay.

    Args:
        steps: most steps between here and the end, or the next :meth:`rewind`; pages for all of them are allocated
            ahead. Layers that drop entries need no more than they keep.
        record: how a step becomes repeatable; tests pass a function that returns the step itself.

    Raises:
        PrerequisiteError: this model or cache cannot be captured; the message says why.
    """

    def __init__(
        self, model: PreTrainedModel, cache: SparseCache, *, steps: int, record: Record = capture, **options: Any
    ) -> None:
        super().__init__(model, cache, **options)
        if why := self._unfit():
            raise PrerequisiteError(f"This decode step cannot be captured: {why}.", "Use --loop eager.")
        self._steps = steps
        self._limits = [
            None if layer.method.forget() is not None else max(self._held(layer)) + steps for layer in self.layers
        ]
        self._record = record
        # A method that reads everything in its first steps reads another number of entries there than later.
        self._first = FIRST + max(layer.method.warmup_steps for layer in self.layers)
        self._replay: Callable[[], None] | None = None

    def _unfit(self) -> str | None:
        if self.plan is None:
            return self.reason or "the model runs through its own forward"
        if len(self.layers) != len(self.cache.layers):
            return "sliding-window layers replace their tensors in every step"
        if self.cache.settings.observer is not None:
            return "an observer watches it; count reads in a StaticLoop"
        return None

    def feed(self, tokens: Any) -> Tensor:
        """Not here: a graph chooses its own tokens.

        Raises:
            UsageError: always.
        """
        raise UsageError("A captured step chooses its own tokens.", "Use a StaticLoop to feed given ones.")

    @torch.no_grad()
    def step(self) -> Tensor:
        """One greedy step; see :meth:`StaticLoop.step`.

        Raises:
            UsageError: all steps that there is room for are made.
        """
        for layer, limit in zip(self.layers, self._limits, strict=True):
            if limit is not None and max(self._held(layer)) >= limit:
                raise UsageError(
                    f"This loop has made the {self._steps} steps that it has room for.", "Build it with more steps."
                )
        if self._first > 0:
            self._first -= 1
            return super().step()
        if self._replay is None:
            self._freeze()
        assert self._replay is not None
        self._replay()
        self._advance()
        return self.tokens

    def _freeze(self) -> None:
        for layer in self.layers:
            assert layer.store is not None
            layer.store = StaticLayer.take(layer.store, self._steps)
        seen = [self._store(layer).seen for layer in self.layers]
        # Sizes that follow from the length on the host (a list's width) must suffice for the last step too.
        for layer in self.layers:
            self._store(layer).seen = [length + self._steps for length in self._store(layer).seen]
        self._replay = self._record(self._choose)
        for layer, lengths in zip(self.layers, seen, strict=True):
            self._store(layer).seen = lengths

    def _advance(self) -> None:
        super()._advance()
        for layer in self.layers:
            if isinstance(layer.store, StaticLayer):
                layer.store.advance()

    @staticmethod
    def _store(layer: MethodLayer) -> Any:
        return layer.store

    def _look(self, number: int) -> bool:
        return number % LOOK_EVERY == LOOK_EVERY - 1
