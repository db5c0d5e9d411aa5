"""Attention of the cpu backend under every alternative of its settings, and how far the choice is from the best.

    python scripts/kernel_alternatives.py --seq-len 32768 --seconds 50

A layer of llama-2-7b (single) and of llama-3.1-8b (grouped), bf16, pages of 16 entries: everything is read, or lists of
2,048 entries. Alternatives take turns in rounds; printed are medians, their share of the default's, and the rate of
reading. `chosen` marks what was measured to be best when the library was built. Settings: kernels/README.md.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

READING = ("order", "ahead", "fetch")
COMPUTING = ("products", "values", "weights")


def main(arguments: list[str] | None = None) -> int:
    """Print a table per kind of attention."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seq-len", type=int, default=32768)
    parser.add_argument("--seconds", type=float, default=50.0, help="for all four kinds together")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    from questbench import _compiling
    from questbench.kernels import _build, _choices, _tune

    module, chosen = _build.cpu(options.threads)
    library = _choices.Library(module)
    default = chosen.measured.get("default") or chosen.plan
    pages = options.seq_len // _tune.PAGE
    print(f"{_compiling.processor_name()}, {options.threads} threads, {options.seq_len:,} entries, {chosen.source}")
    for heads in (_tune.HEADS * _tune.GROUP, _tune.HEADS):
        stored = _tune.pool(pages, heads)
        for listed in (False, True):
            kind = _choices.KINDS[2 * listed + (heads == _tune.HEADS)]
            call = _tune.work(module, stored, listed, options.threads, texts=1)
            plain = default[kind]
            others = [one for names in (READING, COMPUTING) for one in _tune.alternatives(library, kind, plain, names)]
            every = [plain, *others, *([chosen.plan[kind]] if chosen.plan[kind] not in [plain, *others] else [])]
            read = 2 * heads * _tune.DIM * 2 * (_tune.LISTED * _tune.PAGE if listed else options.seq_len)
            _table(library, kind, every, chosen.plan[kind], call, options.seconds / 4, read)
        del stored, call
    return 0


def _table(
    library: Any, kind: str, every: list[dict[str, str]], chosen: dict[str, str], call: Any, seconds: float, read: int
) -> None:
    taken: list[list[float]] = [[] for _ in every]
    order, source, end = list(range(len(every))), random.Random(0), time.monotonic() + seconds
    while time.monotonic() < end or len(taken[0]) < 3:
        source.shuffle(order)
        for at in order:
            library.apply({kind: every[at]})
            taken[at].append(call())
    medians = [statistics.median(times[1:]) for times in taken]
    best = min(medians)
    print(f"\n{kind}, {len(taken[0]) - 1} rounds, {read / 2**20:.0f} MiB a call")
    for at in sorted(range(len(every)), key=medians.__getitem__):
        words = " ".join(f"{name}={value}" for name, value in every[at].items())
        marks = ("default " if at == 0 else "") + ("chosen" if every[at] == chosen else "")
        rate = read / medians[at] / 1e9
        print(f"{medians[at] * 1e3:8.3f} ms  {medians[at] / best:5.3f} of best  {rate:5.1f} GB/s  {words}  {marks}")
    library.apply({kind: chosen})


if __name__ == "__main__":
    sys.exit(main())
