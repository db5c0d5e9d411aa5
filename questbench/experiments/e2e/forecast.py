"""About how long an end-to-end run will take, guessed from bytes and products before a model is loaded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from questbench.experiments.costs import Model, step_seconds
from questbench.experiments.e2e.config import Cell, E2EConfig, methods
from questbench.methods._base import CacheShape
from questbench.models import shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from questbench.models.shapes import Shape

ROUNDS, COUNTED, SLOPES, STAGES, RIVAL = 60, 16, 6, 15, 8
"""Rounds until timing settles; steps around them by method; generations of each length; how many times as long as ours
a step of transformers takes."""


def predicted(config: E2EConfig, grid: Sequence[Cell]) -> Mapping[str, float]:
    """Seconds by cell; 0 where nothing is known, which is where the model is not a named shape."""
    prefix = "shape:"
    if not config.model.startswith(prefix) or any(device != "cpu" for device in config.device):
        return {cell.key: 0.0 for cell in grid}
    shape = shapes.named(config.model.removeprefix(prefix))
    layers = config.layers or shape.layers
    rate, products = _speeds(config.prefills)
    seconds = {}
    loaded: set[tuple[str, str, str]] = set()
    for cell in grid:
        seconds[cell.key] = _cell(config, cell, shape, layers, rate, products)
        if cell.model not in loaded:  # random weights are drawn
            loaded.add(cell.model)
            seconds[cell.key] += 10e-9 * _weights(shape, layers) + 3
    return seconds


def _weights(shape: Shape, layers: int) -> int:
    """Parameters that a step reads."""
    attention = shape.hidden * shape.head_dim * 2 * (shape.heads + shape.kv_heads)
    return layers * (attention + 3 * shape.hidden * shape.ff) + shape.vocab * shape.hidden


def _cell(config: E2EConfig, cell: Cell, shape: Shape, layers: int, rate: float, products: float) -> float:
    element = 4.0 if cell.dtype == "fp32" else 2.0
    width = {"int8": 1.0, "int4": 0.5}.get(cell.weights, element)
    parameters = _weights(shape, layers)
    cache = CacheShape(shape.heads, shape.kv_heads, shape.head_dim, cell.page_size, int(element))
    model, chosen = Model(cache, [None] * layers), methods(config, cell)
    steps = {
        name: step_seconds(parameters * width + model.cache_read(method, cell.seq_len, cell.batch), rate)
        for name, method in chosen.items()
    }
    once = sum(steps.values())
    generated = sum(config.tokens) * min(SLOPES, max(config.max_seconds / max(once * sum(config.tokens), 1e-9), 2))
    timed = min(ROUNDS * once, config.max_seconds) + once * (COUNTED + generated + (STAGES if config.stages else 0))
    timed += len(config.rivals) * min(40 * RIVAL * steps["dense"], config.max_seconds + 5 * RIVAL * steps["dense"])
    filled = cell.batch * layers * cell.seq_len * cache.entry_bytes * 6 / rate
    if config.prefills:
        attended = 2 * layers * shape.heads * shape.head_dim * cell.seq_len
        work = 2 * cell.batch * cell.seq_len * (parameters + attended)
        filled += (config.prefill_rounds * len(chosen) + 1) * work / products
    return timed + filled + 2


def _speeds(products: bool) -> tuple[float, float]:
    """Bytes per second and operations per second of this machine as it is now, from a few tenths of a second."""
    import torch

    from questbench.measure.bandwidth import copy_bandwidth

    rate = copy_bandwidth("cpu", size=64 << 20)
    if not products:
        return rate, 1.0
    a = torch.ones((512, 2048))
    b = torch.ones((2048, 2048))
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return rate, 2 * 512 * 2048 * 2048 / best / 2
