"""Seeds that depend on what they are for and on nothing else."""

from __future__ import annotations

import hashlib
import random

from questbench.errors import UsageError

LIMIT = 1 << 63
"""Seeds are whole numbers of 64 bits with a sign: what all generators take and all tables hold."""


def check(seed: int) -> int:
    """The seed.

    Raises:
        UsageError: it does not fit into 64 bits.
    """
    if not -LIMIT <= seed < LIMIT:
        shown = str(seed) if abs(seed) < 10**30 else "of that length"
        raise UsageError(f"A seed {shown} does not fit into 64 bits.", "Use --seed 0, or any number below 2^63.")
    return seed


def derive(seed: int, *labels: object) -> int:
    """A 63-bit seed for ``(seed, *labels)``: the same on every machine, in every order, for any number of siblings."""
    text = "\x1f".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *labels: object) -> random.Random:
    """A ``random.Random`` of its own for ``(seed, *labels)``; nothing in questbench uses the global one."""
    return random.Random(derive(seed, *labels))
