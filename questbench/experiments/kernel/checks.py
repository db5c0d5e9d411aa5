"""What no cell of the kernel experiment can run with, refused before anything starts."""

from __future__ import annotations

from questbench import flags
from questbench.errors import UsageError
from questbench.experiments.kernel.config import KernelConfig, cells, heads, methods
from questbench.experiments.setup import check_machine, check_methods, load_ops


def check(config: KernelConfig) -> None:
    """Refuse what no cell can satisfy, before anything runs.

    Raises:
        UsageError: unknown names, impossible values.
        PrerequisiteError: a missing backend, compiler or device.
    """
    flags.check(config)
    if config.timing is not None and config.device == "cpu":
        raise UsageError(f"--timing {config.timing} is for GPUs: a CPU has its wall clock.", "Leave --timing out.")
    heads(config)
    check_methods(config, [(methods(config, cell), cell.page_size) for cell in cells(config)])
    for dtype in config.dtype:
        check_machine(config.device, config.backend, dtype, config.page_sizes, config.threads)
    ops, (query, kv, head_dim) = load_ops(config.device, config.backend), heads(config)
    for page_size in config.page_sizes:
        ops.limits.check(ops.name, query_heads=query, kv_heads=kv, head_dim=head_dim, page_size=page_size)
