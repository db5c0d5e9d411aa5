"""What no cell of the accuracy experiment can run with, refused before anything is loaded."""

from __future__ import annotations

from questbench import registry
from questbench.errors import UsageError
from questbench.experiments.accuracy.chat import MODES
from questbench.experiments.accuracy.config import AccuracyConfig, bare_tasks, cells, grid
from questbench.experiments.accuracy.protocol import PROTOCOLS
from questbench.experiments.setup import check_known, check_machine
from questbench.methods._make import check_arguments
from questbench.tasks._data import DataTask, check_use

SAMPLES_MOST = 1_000_000
"""Samples of one task at one length."""


def check(config: AccuracyConfig) -> None:
    """Refuse what no cell can satisfy, before anything is loaded.

    Raises:
        UsageError: unknown names, impossible values.
        PrerequisiteError: a missing backend or device.
    """
    if not config.tasks:
        raise UsageError("No task given.", f"Use --task with one of: {', '.join(registry.names('questbench.tasks'))}.")
    if config.samples is not None and config.samples < 1:
        raise UsageError(f"--samples {config.samples}: at least one sample is needed.", "Use --samples 50.")
    if config.samples is not None and config.samples > SAMPLES_MOST:
        raise UsageError(
            f"--samples {config.samples:,}: a run holds its rows in memory, {SAMPLES_MOST:,} samples of them at most.",
            "Use --samples 1000, or several runs with other seeds.",
        )
    if config.batch < 1:
        raise UsageError(f"--batch {config.batch}: at least one sample runs at a time.", "Use --batch 1.")
    check_known("protocol", [config.protocol], list(PROTOCOLS))
    check_known("chat template mode", [config.chat_template], list(MODES))
    if not 0 < config.margin < 1:
        raise UsageError(f"--margin {config.margin:g} is not between 0 and 1.", "Use --margin 0.02 for 2 points.")
    if config.dense_layers is not None and config.dense_layers < 0:
        raise UsageError(f"--dense-layers {config.dense_layers} is negative.", "Use --dense-layers 0 or more.")
    check_arguments([name for name in config.methods if name != "dense"] or ["dense"], config.method_args)
    usable, refused = cells(config)
    if len(usable) == 1 and refused:
        raise refused[0].error
    check_use([(task.name, isinstance(task, DataTask)) for task in bare_tasks(config)], config.data)
    for work, _, _ in grid(config):
        if work.length < 1:
            raise UsageError(f"--seq-len {work.length} leaves no room for {work.task.name}.", "Use --seq-len 4k.")
    check_machine(config.device, config.backend, config.dtype, config.page_sizes, config.threads)
