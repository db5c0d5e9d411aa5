"""Random kernel calls of a backend, each compared with ``reference`` by the contract of ``questbench/kernels/_ops.py``.

    python scripts/kernel_fuzz.py --calls 50000 --seed 0

Head sizes, page sizes, groups, storage types, ragged and empty rows, empty lists, NaN and infinities are drawn at
random. Every answer must lie within the error budget of float64. A call that differs is printed with its name, and

    python scripts/kernel_fuzz.py --case 0/1234

runs that one again. The last line says how many differed; the exit code is 1 if any did.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

REPORT_EVERY = 30.0
"""Seconds between two lines of progress."""


def main(arguments: list[str] | None = None) -> int:
    """Run the calls; 0 if none differs."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--calls", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--case", metavar="SEED/NUMBER", help="run one call again, by the name it was printed with")
    options = parser.parse_args(arguments)
    names = [options.case] if options.case else [f"{options.seed}/{number}" for number in range(options.calls)]
    print(f"backend {options.backend}, seed {options.seed}, {len(names):,} calls", flush=True)
    differ, reported = 0, time.monotonic()
    for number, (name, about) in enumerate(_results(options.backend, names, options.processes), start=1):
        if about is not None:
            differ += 1
            print(f"differs: --case {name}   {about}", flush=True)
        if time.monotonic() - reported > REPORT_EVERY:
            reported = time.monotonic()
            print(f"{number:,} of {len(names):,}, {differ:,} differ", flush=True)
    print(f"{len(names):,} calls, {differ:,} differ beyond the contract")
    return int(differ > 0)


def _results(backend: str, names: list[str], processes: int) -> Iterator[tuple[str, str | None]]:
    if processes <= 1 or len(names) < 500:
        _start(backend)
        yield from map(_run, names)
        return
    with multiprocessing.get_context("spawn").Pool(processes, _start, (backend,)) as pool:
        yield from pool.imap(_run, names, chunksize=50)


def _start(backend: str) -> None:
    """One process: one thread, and the backend loaded."""
    import torch

    from questbench import kernels

    torch.set_num_threads(1)
    _loaded["ops"] = kernels.load(backend)


def _run(name: str) -> tuple[str, str | None]:
    from _fuzz_cases import run_case

    return name, run_case(_loaded["ops"], name)


_loaded: dict[str, object] = {}

if __name__ == "__main__":
    sys.exit(main())
