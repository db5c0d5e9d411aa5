"""Numbers as people write and read them: token counts, seconds, bytes, rates."""

from __future__ import annotations

import re
from fractions import Fraction

from questbench.errors import UsageError

_COUNT = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(k|ki|m|mi)?\s*$", re.IGNORECASE)
LARGEST = 1 << 53
"""More than this no count can be: beyond it not even every whole number has a floating-point one."""
_FACTOR = {"": 1, "k": 1024, "m": 1024 * 1024}


def parse_count(text: str, *, what: str = "count") -> int:
    """``"32k"`` -> 32768. ``k`` is always 1024 and ``m`` 1024 * 1024, whatever their case.

    Raises:
        UsageError: not a positive whole number of tokens.
    """
    match = _COUNT.match(text)
    if not match:
        raise UsageError(f"'{text}' is not a {what}.", "Write a whole number such as 4096, or 4k for 4,096.")
    suffix = (match.group(2) or "").lower().removesuffix("i")
    value = Fraction(match.group(1)) * _FACTOR[suffix]
    if value > LARGEST:
        shown = text.strip() if len(text.strip()) <= 24 else f"{text.strip()[:20]}..."
        raise UsageError(f"{what} '{shown}' is too large.", f"Write a whole number of at most {LARGEST:,}.")
    if value.denominator != 1:
        raise UsageError(f"{what} '{text}' is not whole: {float(value)}.", "Write a whole number such as 4096, or 4k.")
    return int(value)


def is_whole(text: str) -> bool:
    """Whether ``int(text)`` is a number that someone may mean: ``"²".isdigit()`` holds too, and ``int`` refuses it."""
    return text.isascii() and text.isdigit() and len(text) <= 18


def count(value: int) -> str:
    """32768 -> ``32k``; numbers that are no multiple of 1024 stay as they are."""
    return f"{value // 1024}k" if value >= 1024 and value % 1024 == 0 else str(value)


def echo_count(value: int) -> str:
    """32768 -> ``32k = 32,768 tokens``."""
    short = count(value)
    return f"{short} = {value:,} tokens" if short != str(value) else f"{value:,} tokens"


def significant(value: float, digits: int = 3) -> str:
    """A number with ``digits`` significant figures and no exponent: 0.01234 -> ``0.0123``."""
    if value == 0:
        return "0"
    import math

    if not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(decimals, 0)}f}"


def seconds(value: float) -> str:
    """0.00123 -> ``1.23 ms``."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(value) >= scale:
            return f"{significant(value / scale)} {unit}"
    return f"{significant(value / 1e-9)} ns"


def duration(value: float) -> str:
    """Seconds as one tells them: ``40 s``, ``12 min``, ``2.5 h``."""
    if value < 90:
        return f"{max(round(value), 1)} s"
    minutes = value / 60
    return f"{round(minutes)} min" if minutes < 90 else f"{minutes / 60:.1f} h"


_DURATION = re.compile(r"^\s*(\d{1,9}(?:\.\d{1,9})?)\s*(s|sec|min|m|h)?\s*$", re.IGNORECASE)


def parse_duration(text: str, *, what: str = "duration") -> float:
    """``"90"``, ``"90s"``, ``"20m"``, ``"1.5h"`` in seconds.

    Raises:
        UsageError: it is none, or 0.
    """
    match = _DURATION.match(text)
    if not match or float(match.group(1)) == 0:
        raise UsageError(f"'{text}' is not a {what}.", "Write seconds, or 20m, or 2h.")
    factor = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}[(match.group(2) or "s").lower()]
    return float(match.group(1)) * factor


def size(value: float) -> str:
    """Bytes with binary prefixes: 134217728 -> ``128 MiB``."""
    for scale, unit in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if abs(value) >= scale:
            return f"{significant(value / scale)} {unit}"
    return f"{int(value)} B"


def rate(bytes_per_second: float) -> str:
    """Bytes per second with decimal prefixes, as bandwidths are quoted: 3.6e10 -> ``36.0 GB/s``."""
    return f"{significant(bytes_per_second / 1e9)} GB/s"


def counted(number: float, noun: str) -> str:
    """``2 cores``, ``1 core``, ``1.5 cores``."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
