"""Seeds that depend on what they are for and on nothing else."""

from __future__ import annotations

import hashlib
import random


def derive(seed: int, *labels: object) -> int:
    """A 63-bit seed for ``(seed, *labels)``: the same on every machine, in every order, for any number of siblings."""
    text = "\x1f".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *labels: object) -> random.Random:
    """A ``random.Random`` of its own for ``(seed, *labels)``; nothing in questbench uses the global one."""
    return random.Random(derive(seed, *labels))
