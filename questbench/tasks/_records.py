"""Numbers that are told apart by more than one digit, for records and links."""

from __future__ import annotations


def checked(prefix: int, off: int = 0) -> int:
    """Five digits and the last digit of their sum, shifted by ``off``: two of them differ in two digits at least."""
    return prefix * 10 + (sum(map(int, str(prefix))) + off) % 10
