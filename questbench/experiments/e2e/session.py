"""A loaded model for the cells that share it: caches filled or prefilled, forks per method, loops over them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from questbench._memory import move_to_huge_pages
from questbench._noise import Noise
from questbench.attention import Observer
from questbench.baselines._base import Decode
from questbench.baselines._loop import PATHS
from questbench.errors import CellError, PrerequisiteError
from questbench.experiments import costs
from questbench.experiments.e2e.config import Cell, E2EConfig
from questbench.experiments.setup import (
    base_cache,
    cost_model,
    observed,
    opened,
    thread_count,
)
from questbench.kernels._ops import Ops
from questbench.measure.peak import peak
from questbench.methods._base import Method, PromptMass
from questbench.methods._make import make as make_method
from questbench.models import hf, quantise, static_loop
from questbench.models._projection import weight_bytes
from questbench.models.graph_loop import GraphLoop
from questbench.models.hf_cache import MethodLayer, SparseCache
from questbench.models.loading import LoadedModel
from questbench.models.static_loop import StaticLoop


@dataclass
class Session:
    """One model with one kind of weights on one device."""

    config: E2EConfig
    loaded: LoadedModel
    ops: Ops
    dense_layers: int
    weights: dict[str, Any]
    """What was quantised, for the record."""
    device: str
    uncaptured: str | None = None
    """Why steps run one by one although they should be captured."""
    between: Callable[[int, int], object] | None = None
    """Called between the parts of a prompt; may raise to stop."""

    @classmethod
    def open(cls, config: E2EConfig, cell: Cell) -> Session:
        """Load the model of a cell and quantise it.

        Raises:
            UsageError, PrerequisiteError: it cannot be used for this run.
        """
        with thread_count(None):
            ops, loaded, dense_layers = opened(
                config, cell.device, cell.dtype, layers=config.layers, need_tokenizer=False
            )
            weights = quantise.quantise(loaded.model, cell.weights, head=config.quantise_head)
            move_to_huge_pages(loaded.model)
        static_loop.forget(loaded.model)
        return cls(config, loaded, ops, dense_layers, weights, cell.device)

    @property
    def text(self) -> Any:
        """The decoder's configuration."""
        return self.loaded.model.config.get_text_config(decoder=True)

    @property
    def captured(self) -> bool:
        """Whether steps are captured and replayed."""
        return self.config.loop == "graph" or (self.config.loop == "auto" and self.device.startswith("cuda"))

    @property
    def experts(self) -> int:
        """Experts per layer, of which a token reads a few; 0 for dense models."""
        names = ("num_local_experts", "num_experts", "n_routed_experts")
        return next((int(number) for name in names if (number := getattr(self.text, name, None))), 0)

    def costs(self, cell: Cell) -> costs.Model:
        """What decides the bytes of a step and of the caches."""
        return cost_model(self.loaded.model, cell.page_size, self.dense_layers)

    def stored_weights(self) -> int:
        """Bytes of all weights."""
        return weight_bytes(self.loaded.model)

    def read_weights(self, rows: int) -> int:
        """Bytes of weights that a step of ``rows`` tokens reads: all but the embedding, of which it reads some rows."""
        model = self.loaded.model
        embedding = model.get_input_embeddings()
        tied = getattr(model.get_output_embeddings(), "weight", None) is embedding.weight
        row = int(embedding.weight.shape[1]) * int(embedding.weight.element_size())
        return weight_bytes(model) - (0 if tied else weight_bytes(embedding)) + rows * row

    def base(self, cell: Cell, methods: Mapping[str, Method], room: int) -> tuple[SparseCache, Tensor]:
        """A dense cache of the prompts that every method can be forked from, and the first token ``[B]``.

        All forks of the run find room in its pages for their new entries, those of methods that drop in their dense
        layers: captured steps know where the pages lie, so that they cannot grow.
        """
        forks = 1 + len(methods) + (PATHS if self.captured else 0)
        capacity = cell.seq_len + forks * (room + 2 * cell.page_size)
        cache = base_cache(self.loaded.model, self.ops, methods.values(), page_size=cell.page_size, capacity=capacity)
        if not self.config.prefills:
            return cache, self._fill(cache, cell, observed(methods.values()))
        logits = hf.prefill(
            self.loaded.model, self.prompt(cell), cache, chunk=self.config.prefill_chunk, progress=self.between
        )
        return cache, logits.argmax(-1)

    def prompt(self, cell: Cell) -> Tensor:
        """Random tokens ``[B, seq_len]``: what they say does not matter for time."""
        generator = torch.Generator().manual_seed(self.config.seed)
        vocabulary = self.loaded.model.get_input_embeddings().num_embeddings
        return torch.randint(0, vocabulary, (cell.batch, cell.seq_len), generator=generator)

    def time_prefill(self, cell: Cell, method: Method) -> tuple[float, int | None]:
        """Seconds from the prompt to its first token under a method, and the rise of memory meanwhile."""
        model, prompt = self.loaded.model, self.prompt(cell).to(self.device)
        with peak(self.device) as memory:
            start = time.perf_counter()
            cache = hf.build_cache(
                model,
                method,
                dense_layers=self.dense_layers,
                page_size=cell.page_size,
                ops=self.ops,
                capacity=cell.seq_len + 1,
            )
            hf.prefill(model, prompt, cache, chunk=self.config.prefill_chunk, progress=self.between).argmax(-1).tolist()
            if self.device.startswith("cuda"):
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - start
        hf.release(cache)
        return seconds, memory.rise

    def loop(
        self, base: SparseCache, cell: Cell, method: Method, first: Tensor, steps: int, observer: Observer | None = None
    ) -> StaticLoop:
        """A decode loop over a fork of ``base`` under a method."""
        cache = hf.fork(base, method, dense_layers=self.dense_layers, page_size=cell.page_size, observer=observer)
        loop: StaticLoop | None = None
        # What is watched cannot be replayed: reads are counted step by step.
        if self.captured and observer is None:
            try:
                loop = GraphLoop(self.loaded.model, cache, steps=steps)
            except PrerequisiteError as error:
                if self.config.loop == "graph":
                    raise
                self.uncaptured = error.message
        if loop is None:
            loop = StaticLoop(self.loaded.model, cache, plan="model" if self.config.loop == "model" else "auto")
        loop.tokens.copy_(first)
        return loop

    def decode(self, cell: Cell, room: int, base: SparseCache | None = None, first: Tensor | None = None) -> Decode:
        """What baselines are given: the prompts of ``base`` where they are still there, and ``room`` for steps."""
        fork = None
        if base is not None:
            fork = functools.partial(hf.fork, base, make_method("dense", 0), dense_layers=0, page_size=cell.page_size)
        noise = self.noise(cell)
        return Decode(self.loaded.model, self.device, noise, cell.seq_len, room, self.captured, fork, first)

    def _fill(self, cache: SparseCache, cell: Cell, collect: frozenset[PromptMass]) -> Tensor:
        """Random entries in place of a prompt's; the mass that methods judge by is random too."""
        noise, generator = self.noise(cell), torch.Generator().manual_seed(self.config.seed)
        for layer in cache.layers:
            if not isinstance(layer, MethodLayer):
                self._fill_window(layer, noise, cell.seq_len)
                continue
            for k, v in noise.parts(cell.seq_len):
                if layer.store is None:
                    layer.query_heads = self.costs(cell).cache.query_heads
                    layer.lazy_initialization(k, v)
                assert layer.store is not None
                layer.store.append(k, v)
            layer.columns = cell.seq_len
            assert layer.store is not None
            for part in layer.store.parts:  # one: this cache is dense
                for mode in sorted(collect, key=str):
                    mass = torch.rand((cell.batch, part.kv_heads, cell.seq_len), generator=generator)
                    part.prefill_mass[mode] = mass.to(self.device)
        return torch.ones(cell.batch, dtype=torch.long, device=self.device)

    def noise(self, cell: Cell) -> Noise:
        """Random entries of this model's shape."""
        shape, dtype = self.costs(cell).cache, self.loaded.model.dtype
        generator = torch.Generator().manual_seed(self.config.seed)
        return Noise(cell.batch, shape.kv_heads, shape.head_dim, dtype, self.device, generator)

    @staticmethod
    def _fill_window(layer: Any, noise: Any, seq_len: int) -> None:
        if not hasattr(layer, "cumulative_length"):
            raise CellError(
                f"A layer of type {type(layer).__name__} cannot be filled.", "Leave out --cache-fill random."
            )
        for k, v in noise.parts(min(layer.sliding_window, seq_len)):
            layer.update(k, v)
        layer.cumulative_length = seq_len
