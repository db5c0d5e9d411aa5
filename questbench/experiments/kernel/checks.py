"""What no cell of the kernel experiment can run with, refused before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from questbench import registry
from questbench.errors import UsageError
from questbench.experiments.engine import refusals_of
from questbench.experiments.kernel.config import TIMINGS, KernelConfig, cells, heads, methods
from questbench.experiments.setup import check_machine, load_ops
from questbench.methods._make import PACKAGE, check_arguments, method_class


def check(config: KernelConfig) -> None:
    """Refuse what no cell can satisfy, before anything runs.

    Raises:
        UsageError: unknown names, impossible values.
        PrerequisiteError: a missing backend, compiler or device.
    """
    positive: Mapping[str, Sequence[int | None]] = {
        "--seq-len": config.seq_lens,
        "--budget": config.budgets,
        "--batch": config.batch,
        "--heads": [config.heads],
        "--kv-heads": [config.kv_heads],
        "--head-dim": [config.head_dim],
        "--rounds": [config.rounds],
    }
    for flag, values in positive.items():
        for value in values:
            if value is not None and value < 1:
                raise UsageError(f"{flag} {value}: must be at least 1.", f"See: questbench kernel --help ({flag}).")
    if config.cache not in ("cold", "warm"):
        raise registry.unknown("cache state", config.cache, ["cold", "warm"])
    if config.timing not in (None, *TIMINGS):
        raise registry.unknown("timing", config.timing, list(TIMINGS))
    if config.timing is not None and config.device == "cpu":
        raise UsageError(f"--timing {config.timing} is for GPUs: a CPU has its wall clock.", "Leave --timing out.")
    heads(config)
    for name in config.methods:
        if method_class(name).yardstick:
            usable = [known for known, cls in registry.usable(PACKAGE, method_class).items() if not cls.yardstick]
            raise UsageError(
                f"'{name}' is a yardstick for accuracy: nobody would deploy it, so its speed means nothing.",
                f"Use --method with one of: {', '.join(usable)}.",
            )
    check_arguments(dict.fromkeys(["dense", *config.methods]), config.method_args)
    refusals = [refusals_of(methods(config, cell), cell.page_size) for cell in cells(config)]
    for name, error in refusals[0].items():
        if all(name in refused for refused in refusals):
            raise error
    for dtype in config.dtype:
        check_machine(config.device, config.backend, dtype, config.page_sizes, config.threads)
    ops, (query, kv, head_dim) = load_ops(config.device, config.backend), heads(config)
    for page_size in config.page_sizes:
        ops.limits.check(ops.name, query_heads=query, kv_heads=kv, head_dim=head_dim, page_size=page_size)
