"""What no cell of the end-to-end experiment can run with, refused before anything starts."""

from __future__ import annotations

import itertools

from questbench import flags
from questbench.errors import UsageError
from questbench.experiments.e2e.config import E2EConfig, cells, methods
from questbench.experiments.setup import check_machine, check_methods, leading_layers
from questbench.models import loading, shapes


def check(config: E2EConfig) -> None:
    """Refuse what no cell can satisfy, before anything runs.

    Raises:
        UsageError: unknown names, impossible values.
        PrerequisiteError: a missing backend, compiler, device or package.
    """
    flags.check(config)
    loading.check(config.model, config.layers)
    if config.model.startswith(loading.SHAPE):
        shape = shapes.named(config.model.removeprefix(loading.SHAPE))
        layers = config.layers or shape.layers
        leading_layers(config.dense_layers, loading.DENSE_LAYERS, layers, config.model)
    if len(config.tokens) != 2 or config.tokens[0] >= config.tokens[1]:
        raise UsageError("--tokens takes two lengths, the shorter first.", "Use --tokens 4,16.")
    check_methods(config, [(methods(config, cell), cell.page_size) for cell in cells(config)])
    from questbench.models import quantise  # Imports torch, for which a wrong value need not wait.

    for device, dtype, threads in itertools.product(config.device, config.dtype, config.threads):
        check_machine(device, config.backend, dtype, config.page_sizes, threads)
        for weights in config.weights:
            quantise.check(weights, device, dtype)
    if config.loop == "graph" and any(not device.startswith("cuda") for device in config.device):
        raise UsageError("--loop graph needs a CUDA device: CUDA graphs exist there only.", "Use --loop eager.")
