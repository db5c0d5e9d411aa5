"""Subprocess of the crash test: write cells until killed, and say on stdout which ones were acknowledged."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from records_helpers import CONFIG, ENVIRONMENT, cell

from questbench.records import store


def main(folder: Path, last: int) -> None:
    """Finish the cells below ``last`` that are not finished yet."""
    rng = random.Random()
    with store.resume(folder, "kernel", ["questbench"], CONFIG, ENVIRONMENT) as writer:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for index in range(last):
            key = cell(index)[0].cell()
            if key in writer.finished:
                continue
            writer.samples({"cell": str(index), "row": row, "text": "x" * rng.randrange(3000)} for row in range(2))
            writer.write(cell(index, size=rng.randrange(1, 40)), key=f"unit {index}")
            sys.stdout.write(f"{index}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
