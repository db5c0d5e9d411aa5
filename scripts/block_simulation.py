"""How often perplexity's paired test sees a difference where there is none, by length and correlation of the texts.

Prints the table that docs/methodology.md quotes. Differences of 64-token windows follow an autoregression of first
order, or (last column) half of their variance is noise of single windows and half decays by 0.9 a window.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from numpy.typing import NDArray

from questbench.measure import blocks

WINDOW = 64
SHAPES = ((1, 32), (4, 16), (8, 16), (1, 128), (4, 64), (1, 512), (4, 128), (1, 2048))
"""Texts, and windows of each."""
LINKS = (0.0, 0.3, 0.6, 0.8)


def windows(rng: np.random.Generator, count: int, link: float) -> NDArray[np.float64]:
    """A stationary autoregression with variance 1."""
    noise = rng.normal(0, math.sqrt(1 - link**2), count)
    found = np.empty(count)
    level = rng.normal()
    for place in range(count):
        found[place] = level = link * level + noise[place]
    return found


def mixture(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """A slow drift under noise."""
    return (windows(rng, count, 0.9) + rng.normal(size=count)) / math.sqrt(2)


def alarms(texts: int, count: int, link: float | None, runs: int, seed: int = 0) -> tuple[float, float]:
    """Shares of runs in which a difference is called, and in which none can be.

    Args:
        link: correlation of neighbouring windows; ``None`` for :func:`mixture`.
    """
    rng = np.random.default_rng([seed, texts, count, round(1000 * (link or 0)), link is None])
    dense = [[(2.0 * WINDOW, WINDOW)] * count] * texts
    called = refused = 0
    for _ in range(runs):
        drawn = [mixture(rng, count) if link is None else windows(rng, count, link) for _ in range(texts)]
        own = [[(2.0 * WINDOW + float(value), WINDOW) for value in text] for text in drawn]
        p_value = blocks.compare(own, dense, resamples=400).p_value
        called += p_value is not None and p_value < 0.05
        refused += p_value is None
    return called / runs, refused / runs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=4000)
    runs = parser.parse_args().runs
    columns: list[float | None] = [*LINKS, None]
    print("| texts x tokens | " + " | ".join("drift" if link is None else f"{link:g}" for link in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for texts, count in SHAPES:
        cells = []
        for link in columns:
            called, refused = alarms(texts, count, link, runs)
            cells.append(f"{100 * called:.1f} ({100 * refused:.0f})")
        print(f"| {texts} x {count * WINDOW:,} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
