"""The decode loop as one CUDA graph: the whole step, sampling included, is launched at once.

The first steps run one by one: they compile, warm up and let methods drop what they drop after a prompt. Then every
layer is frozen, the step is captured, and each later step is one replay. Sliding-window layers,
whose tensors transformers replaces in every step, move into pages of ours for it (``methods/_window.py``).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from questbench.cache import LayerCache
from questbench.errors import PrerequisiteError, UsageError
from questbench.methods._window import Window
from questbench.models._mark import Mark
from questbench.models.hf_cache import MethodLayer, SparseCache
from questbench.models.rotary import changes_with_length
from questbench.models.static_loop import StaticLoop

FIRST = 3
"""Steps before the capture: kernels are built and libraries make their workspaces in them."""
LOOK_EVERY = 16
"""Steps between two looks at the end-of-text flags: each waits for the device."""

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Turns a step into something that repeats it."""


@functools.cache
def _side_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """Work on the stream that captures run on, between what was queued before and what is queued after.

    What a backend keeps per stream (scratch that is zeroed once) then exists when a capture begins. Scratch made inside
    of one would be zeroed by every replay, op by op.
    """
    if device.type != "cuda":
        yield
        return
    cuda: Any = torch.cuda
    side, current = _side_stream(device), cuda.current_stream(device)
    side.wait_stream(current)
    with cuda.stream(side):
        yield
    current.wait_stream(side)


def capture(step: Callable[[], None]) -> Callable[[], None]:
    """Record a step as a CUDA graph of the current device; calling the result replays it."""
    cuda: Any = torch.cuda
    graph = cuda.CUDAGraph()
    cuda.synchronize()
    with cuda.graph(graph, stream=_side_stream(torch.device("cuda", cuda.current_device()))):
        step()
    replay: Callable[[], None] = graph.replay
    return replay


class GraphLoop(StaticLoop):
    """Greedy decode steps by replay.

    Args:
        steps: most steps between here and the end, or the next :meth:`rewind`; pages for all of them are allocated
            ahead. Layers that drop entries need no more than they keep.
        record: how a step becomes repeatable, :func:`capture` by default; tests pass a function that returns the step
            itself.

    Raises:
        PrerequisiteError: this model or cache cannot be captured; the message says why.
    """

    def __init__(
        self, model: PreTrainedModel, cache: SparseCache, *, steps: int, record: Record | None = None, **options: Any
    ) -> None:
        super().__init__(model, cache, **options)
        if why := self._unfit():
            raise PrerequisiteError(f"This decode step cannot be captured: {why}.", "Use --loop eager.")
        self._steps = steps
        self._limits = [limit for layer in self.layers for limit in self._limits_of(layer)]
        self._record = record or capture
        # A method that reads everything in its first steps reads another number of entries there than later.
        self._first = FIRST + max((layer.method.warmup_steps for layer in self.layers), default=0)
        self._replay: Callable[[], None] | None = None

    def _limits_of(self, layer: MethodLayer) -> Iterator[int | None]:
        """Entries that each part of a layer has room for; ``None`` where it drops one for each that it takes."""
        for part in layer.store.parts if layer.store else ():
            keep, last = part.method.keep_step(), max(part.held) + self._steps
            yield None if keep is not None and last > keep.entries else last

    def _unfit(self) -> str | None:
        if self.plan is None:
            return self.reason or "the model runs through its own forward"
        ops = self.cache.settings.ops
        if ops.device == "any":
            return f"backend '{ops.name}' asks the host within a step"
        if changes_with_length(self.model):
            return "its rotary frequencies change with the length, which the host decides in every step"
        if self.cache.settings.observer is not None:
            return "an observer watches it; count reads in a StaticLoop"
        if self.cache.settings.collect:
            return "it collects attention mass, whose size grows with every step"
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
        parts = [part for layer in self.layers if layer.store for part in layer.store.parts]
        for part, limit in zip(parts, self._limits, strict=True):
            if limit is not None and max(part.held) >= limit:
                raise UsageError(
                    f"This loop has made the {self._steps} steps that it has room for.", "Build it with more steps."
                )
        if self._first > 0:
            self._first -= 1
            with beside(self.tokens.device):
                return super().step()
        if self._replay is None:
            self._freeze()
        assert self._replay is not None
        self._prepare()
        self._replay()
        self._advance()
        return self.tokens

    def rewind(self, mark: Mark) -> bool:
        """See :meth:`StaticLoop.rewind`."""
        whole = super().rewind(mark)
        self._prepare()
        return whole

    def _freeze(self) -> None:
        for layer in self.layers:
            for part in layer.store.parts if layer.store else ():
                part.freeze(self._steps)
        for index, layer in enumerate(self.cache.layers):
            if not isinstance(layer, MethodLayer):
                self.cache.layers[index] = self._paged(index, layer)
        self._mask = None  # it told which columns of a window are padding: none of those was moved
        self._before_recording()
        self._replay = self._record(self._choose)

    def _paged(self, index: int, layer: Any) -> MethodLayer:
        """A sliding-window layer of transformers with its entries in pages of ours, those of padding left out."""
        window, settings = Window(layer.sliding_window), self.cache.settings
        rows, kv_heads, columns, head_dim = layer.keys.shape
        seen = self.places[:, 0].tolist()
        held = [min(length, columns) for length in seen]
        store = LayerCache(
            window,
            settings.ops,
            rows=rows,
            kv_heads=kv_heads,
            head_dim=head_dim,
            page_size=settings.page_size,
            dtype=layer.keys.dtype,
            device=layer.keys.device,
            capacity=window.budget,
            index=index,
        )
        store.seen = [length - count for length, count in zip(seen, held, strict=True)]
        store.append(layer.keys, layer.values, held)
        store.freeze(window.budget)
        paged = MethodLayer(index, window, settings)
        paged.store, paged.columns, paged.is_initialized = store, max(seen), True
        return paged

    def _before_recording(self) -> None:
        """All layers are frozen, and no step has been recorded yet."""

    def _prepare(self) -> None:
        """Before every replay, on the host."""

    def _advance(self) -> None:
        super()._advance()
        if self._replay is not None:
            for layer in self.cache.layers:
                for part in layer.store.parts:
                    part.advance()

    def _look(self, number: int) -> bool:
        return number % LOOK_EVERY == LOOK_EVERY - 1
