"""What no cell of the accuracy experiment can run with, refused before anything is loaded."""

from __future__ import annotations

from questbench import flags, registry
from questbench.errors import UsageError
from questbench.experiments.accuracy.config import AccuracyConfig, bare_tasks, cells, grid
from questbench.experiments.setup import check_machine
from questbench.methods._make import check_arguments
from questbench.models import loading
from questbench.tasks._data import DataTask, check_use

SAMPLES_MOST = 1_000_000
"""Samples of one task at one length."""


def check(config: AccuracyConfig) -> None:
    """Refuse what no cell can satisfy, before anything is loaded.

    Raises:
        UsageError: unknown names, impossible values.
        PrerequisiteError: a missing model, backend or device.
    """
    if not config.tasks:
        raise UsageError("No task given.", f"Use --task with one of: {', '.join(registry.names('questbench.tasks'))}.")
    flags.check(config)
    loading.check(config.model)
    if config.samples is not None and config.samples > SAMPLES_MOST:
        raise UsageError(
            f"--samples {config.samples:,}: a run holds its rows in memory, {SAMPLES_MOST:,} samples of them at most.",
            "Use --samples 1000, or several runs with other seeds.",
        )
    check_arguments([name for name in config.methods if name != "dense"] or ["dense"], config.method_args)
    usable, refused = cells(config)
    if len(usable) == 1 and refused:
        raise refused[0].error
    check_use([(task.name, isinstance(task, DataTask)) for task in bare_tasks(config)], config.data)
    grid(config)
    check_machine(config.device, config.backend, config.dtype, config.page_sizes, config.threads)
