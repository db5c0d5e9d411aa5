"""What no cell of the end-to-end experiment can run with, refused before anything starts."""

from __future__ import annotations

import itertools

from questbench import registry
from questbench.errors import UsageError
from questbench.experiments.e2e.config import (
    FILLS,
    LOOPS,
    RIVALS,
    SELECT_BY,
    E2EConfig,
    cells,
    check_dense_layers,
    methods,
)
from questbench.experiments.engine import refusals_of
from questbench.experiments.setup import check_machine
from questbench.methods._make import PACKAGE, check_arguments, method_class
from questbench.models import loading, quantise, shapes


def check(config: E2EConfig) -> None:
    """Refuse what no cell can satisfy, before anything runs.

    Raises:
        UsageError: unknown names, impossible values.
        PrerequisiteError: a missing backend, compiler, device or package.
    """
    loading.check(config.model, config.layers)
    if config.model.startswith(loading.SHAPE):
        shape = shapes.named(config.model.removeprefix(loading.SHAPE))
        check_dense_layers(config, loading.DENSE_LAYERS, config.layers or shape.layers)
    positive = {
        "--seq-len": config.seq_lens,
        "--budget": config.budgets,
        "--batch": config.batch,
        "--prefill-chunk": [config.prefill_chunk],
        "--prefill-rounds": [config.prefill_rounds],
        "--rounds": [config.rounds],
        "--tokens": config.tokens,
    }
    for flag, values in positive.items():
        for value in values:
            if value < 1:
                raise UsageError(f"{flag} {value}: must be at least 1.", f"See: questbench e2e --help ({flag}).")
    if len(config.tokens) != 2 or config.tokens[0] >= config.tokens[1]:
        raise UsageError("--tokens takes two lengths, the shorter first.", "Use --tokens 4,16.")
    choices = {
        "cache fill": ([config.cache_fill], FILLS),
        "loop": ([config.loop], LOOPS),
        "cache of transformers": (config.rivals, RIVALS),
        "select-by": (config.select_by, SELECT_BY),
    }
    for what, (values_given, known) in choices.items():
        for name in values_given:
            if name not in known:
                raise registry.unknown(what, name, list(known))
    for name in config.methods:
        if method_class(name).yardstick:
            usable = [
                known_name for known_name, cls in registry.usable(PACKAGE, method_class).items() if not cls.yardstick
            ]
            raise UsageError(
                f"'{name}' is a yardstick for accuracy: nobody would deploy it, so its speed means nothing.",
                f"Use --method with one of: {', '.join(usable)}.",
            )
    check_arguments(dict.fromkeys(["dense", *config.methods]), config.method_args)
    grid = cells(config)
    refusals = [refusals_of(methods(config, cell), cell.page_size) for cell in grid]
    for name, error in refusals[0].items():
        if all(name in refused for refused in refusals):
            raise error
    for device, dtype, threads in itertools.product(config.device, config.dtype, config.threads):
        check_machine(device, config.backend, dtype, config.page_sizes, threads)
        for weights in config.weights:
            quantise.check(weights, device, dtype)
    if config.loop == "graph" and any(not device.startswith("cuda") for device in config.device):
        raise UsageError("--loop graph needs a CUDA device: CUDA graphs exist there only.", "Use --loop eager.")
