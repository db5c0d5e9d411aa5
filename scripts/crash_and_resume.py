"""Kill a sweep with SIGKILL at random moments, resume it, and check that nothing is lost or done twice.

    python scripts/crash_and_resume.py --kills 20

Prints one line of figures and exits with 0 if, after the last resume, every unit of work stands exactly once in the
journal, every (sample, cell) exactly once in samples.jsonl, and all records equal those of a run without a kill.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "questbench", "accuracy", "--task", "passkey", "--seq-len", "256"]
COMMAND += ["--budget", "64", "--method", "dense,quest"]
STARTS = 0.25
"""Share of the kills that fall into start-up; the others wait for a unit of work, so that a loaded machine hits too."""
PATIENCE = 600.0
"""Seconds to wait for a unit of work."""
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run the check; 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--samples", type=int, help="two more than kills if left out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        command = [*COMMAND, "--samples", str(options.samples or options.kills + 2), "--out"]
        whole, start = _whole_run([*command, f"{scratch}/whole"], Path(scratch, "whole"))
        killed = Path(scratch, "killed")
        run, kills = _interrupted([*command, str(killed)], killed, options.kills, moments, start)
        problems = _problems(whole, run)
    sys.stdout.write(f"{kills} kills, {run.units} units of work: ")
    sys.stdout.write("nothing lost, nothing twice\n" if not problems else "\n".join(["FAILED", *problems, ""]))
    return 1 if problems else 0


def _whole_run(command: list[str], out: Path) -> tuple[dict[str, Any], float]:
    """Its state, and the seconds that it took to start."""
    start = time.time()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    run = next(out.iterdir())
    begun = datetime.datetime.fromisoformat(json.loads((run / "run.json").read_text())["start"]).timestamp()
    return _state(run), begun - start


def _interrupted(command: list[str], out: Path, kills: int, moments: random.Random, start: float) -> tuple[_State, int]:
    """Start, kill, resume ... The moments fall all over a run, start-up and last write included."""
    done = 0
    while done < kills:
        begun = sorted(out.glob("*/run.json"))
        again = [*command[:-2], "--resume", str(begun[0].parent)] if begun else command
        before = _written(out)
        process = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        if moments.random() < STARTS:
            _wait(process, moments.uniform(0.05, 1.2) * start, lambda: False)
        else:
            # Somewhere between the end of one unit and the end of the next, of which the writing is the last part.
            _wait(process, PATIENCE, lambda before=before: _written(out) > before)  # type: ignore[misc]
            _wait(process, moments.uniform(0.0, 0.5), lambda: False)
        if process.poll() is not None:
            break  # done before the last kill: a sweep with more samples takes more of them
        process.send_signal(signal.SIGKILL)
        process.wait()
        done += 1
    begun = sorted(out.glob("*/run.json"))
    last = [*command[:-2], "--resume", str(begun[0].parent)] if begun else command  # all of them died in start-up
    subprocess.run(last, check=True, capture_output=True, cwd=ROOT)
    return _State(sorted(out.glob("*/run.json"))[0].parent), done


def _written(out: Path) -> int:
    """Bytes of the run's files so far."""
    return sum(path.stat().st_size for path in out.glob("*/*.jsonl"))


def _wait(process: subprocess.Popen[bytes], seconds: float, over: Callable[[], bool]) -> None:
    """Wait for a moment: so many seconds, the process's own end, or ``over``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None and not over():
        time.sleep(0.002)


class _State:
    """What a finished run folder holds."""

    def __init__(self, run: Path) -> None:
        self.content = _state(run)
        self.units = len(_lines(run / "cells.jsonl"))


def _problems(whole: dict[str, Any], run: _State) -> list[str]:
    found = [f"{kind} differ from the run without a kill" for kind in whole if whole[kind] != run.content[kind]]
    return found + [f"twice: {key}" for key, times in run.content["rows"].items() if times != 1]


def _state(run: Path) -> dict[str, Any]:
    records = [json.loads(line) for line in _lines(run / "records.jsonl")]
    samples = [json.loads(line) for line in _lines(run / "samples.jsonl")]
    manifest = json.loads((run / "run.json").read_text())
    return {
        "records": sorted(json.dumps({**record, "run": ""}, sort_keys=True) for record in records),
        "rows": Counter(f"{row['unit']} {row['cell']}" for row in samples),
        "prefills": manifest["prefills"],
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


if __name__ == "__main__":
    sys.exit(main())
