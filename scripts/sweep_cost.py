"""What a sweep costs beyond its parts: one prefill per sample, then each cell's decoding, and little else.

    python scripts/sweep_cost.py                          run 5 methods x 5 budgets on the embedded model, then judge
    python scripts/sweep_cost.py --run results/FOLDER     judge a run that was made earlier

Exits with 0 if run.json counts exactly one prefill per sample, the wall time of the run is at most 1.15 times one
prefill per sample and the decoding of every cell, and forks take less than 5 % of it. The wall time is that between
start and end in run.json: loading the model is part of it, so that a run of seconds may miss the limit.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COMMAND = ["accuracy", "--method", "dense,quest,h2o,tova,streaming_llm", "--budget", "64,128,256,512,1k"]
MOST_WALL, MOST_FORKS = 1.15, 0.05


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of a run by what they were spent on."""

    samples: int
    cells: int
    prefills: int
    """As run.json counts them."""
    prefill: float
    """One per sample."""
    decode: float
    fork: float
    wall: float

    @property
    def ratio(self) -> float:
        """Wall time over one prefill per sample and all decoding."""
        return self.wall / (self.prefill + self.decode)

    @property
    def forks(self) -> float:
        """Share of the wall time that forks took."""
        return self.fork / self.wall

    def problems(self) -> list[str]:
        """What is not as it should be."""
        found = []
        if self.prefills != self.samples:
            found.append(f"{self.prefills} prefills for {self.samples} samples")
        if self.ratio > MOST_WALL:
            found.append(f"wall time {self.ratio:.3f} of its parts, more than {MOST_WALL}")
        if self.forks >= MOST_FORKS:
            found.append(f"forks take {self.forks:.1%}, not less than {MOST_FORKS:.0%}")
        return found


def cost(manifest: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Cost:
    """Add up the seconds of a run.

    Args:
        manifest: ``run.json``.
        rows: ``samples.jsonl``, one per (sample, cell).

    Raises:
        SystemExit: the run was resumed or did not end, so that its wall time is not known.
    """
    if manifest["end"] is None or manifest["environment"].get("resumed"):
        raise SystemExit("The run was resumed or has not ended: its wall time is not known.")
    timed = [row for row in rows if "seconds" in row]
    start, end = (datetime.datetime.fromisoformat(manifest[name]) for name in ("start", "end"))
    # Every row of a sample repeats the seconds of its one prefill.
    prefills = {row["unit"]: row["seconds"]["prefill"] for row in timed}
    return Cost(
        samples=len(prefills),
        cells=len({(row["task"], row["seq_len"], row["cell"]) for row in timed}),
        prefills=manifest["prefills"],
        prefill=math.fsum(prefills.values()),
        decode=math.fsum(row["seconds"]["decode"] for row in timed),
        fork=math.fsum(row["seconds"]["fork"] for row in timed),
        wall=(end - start).total_seconds(),
    )


def main() -> int:
    """Run and judge; 0 if all is well."""
    from questbench.records import store

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a run folder; a sweep is run if left out")
    parser.add_argument("--task", default="kv")
    parser.add_argument("--seq-len", default="4k")
    parser.add_argument("--samples", default="20")
    parser.add_argument("--model", default="constructed")
    parser.add_argument("--threads", default="2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = options.run
        if run is None:
            settings = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in SETTINGS]
            subprocess.run([sys.executable, "-m", "questbench", *COMMAND, *settings, f"--out={scratch}"], check=True)
            (run,) = store.runs(Path(scratch))
        found = cost(dataclasses.asdict(store.load_manifest(run)), store.load_samples(run))
    sys.stdout.write(
        f"{found.samples} samples, {found.cells} cells, {found.prefills} prefills; wall {found.wall:.1f} s = "
        f"{found.ratio:.3f} x (prefill {found.prefill:.1f} s + decode {found.decode:.1f} s); forks {found.fork:.2f} s, "
        f"{found.forks:.2%}\n"
    )
    problems = found.problems()
    sys.stdout.write("".join(f"FAILED: {problem}\n" for problem in problems))
    return 1 if problems else 0


SETTINGS = ("task", "seq-len", "samples", "model", "threads")

if __name__ == "__main__":
    sys.exit(main())
