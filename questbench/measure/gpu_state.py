"""What the driver says of a GPU's clocks: a throttled card times itself, not the kernels."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from questbench.measure.cautions import Caution

SLOWED = {
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x20: "software thermal limit",
    0x40: "hardware thermal limit",
    0x80: "power brake",
}
"""Bits of ``clocks_event_reasons.active`` that mean lower clocks than the card was asked for (NVML's names)."""
QUERIES = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""The field, and what drivers before 535 call it."""


def nvidia_smi(field: str, device: str) -> str:
    """One field of one card. Raises OSError or subprocess.SubprocessError where nvidia-smi cannot tell."""
    command = ["nvidia-smi", f"--id={device}", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def identifier(device: str) -> str:
    """What nvidia-smi calls a CUDA device of torch, whatever CUDA_VISIBLE_DEVICES says."""
    import torch

    named = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return "0" if named is None else f"GPU-{named}"


def caution(device: str, ask: Callable[[str, str], str] = nvidia_smi) -> str | None:
    """A sentence if the card runs below its clocks right now; ``None`` if it does not, or nobody can tell.

    Args:
        device: as :func:`identifier` names it.
        ask: returns a field; tests pass their own.
    """
    for field in QUERIES:
        try:
            bits = int(ask(field, device), 16)
        except (OSError, ValueError, subprocess.SubprocessError):
            continue
        why = [name for bit, name in SLOWED.items() if bits & bit]
        return Caution.THROTTLED.text(why=", ".join(why)) if why else None
    return None
