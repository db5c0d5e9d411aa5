"""Whether the weights of a model fit into memory, told before they are loaded."""

from __future__ import annotations

from questbench.errors import PrerequisiteError
from questbench.measure.memory import free_bytes


def check_memory(name: str, needed: int, device: str) -> None:
    """Refuse weights that cannot fit, rather than be killed while they load.

    Raises:
        PrerequisiteError: there is not enough free memory.
    """
    free = free_bytes(device)
    if needed > free:
        raise PrerequisiteError(
            f"The weights of {name} need {needed / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB are free.",
            "Use a smaller model, or --dtype bf16.",
        )
