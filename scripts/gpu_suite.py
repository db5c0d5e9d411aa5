"""Build, test, check and measure the CUDA kernels on one GPU, in under 8 minutes; writes one JSON file.

    python scripts/gpu_suite.py --out results/published/h200_kernel.json
    python scripts/gpu_suite.py --rehearse        the same flow on the CPU with tiny shapes, in about a minute

In this order, so that what matters most is there if the time runs out:

    build       the kernels; FlashInfer compiles its own meanwhile, several modules at once
    tests       pytest -m gpu
    goals       the cells that the goals are about
    sanitize    compute-sanitizer memcheck and racecheck (scripts/gpu_sanitize.py)
    grid        shape x length x batch x budget: own dense, FlashInfer's best dense path, torch, every method, stages

--only runs some of them, and --go-on takes the cells of an earlier file over, so that several short turns on a machine
make one result. The grid runs in processes of its own: a kernel that crashes or hangs loses its cell and no other.
Cells that do not fit in memory are recorded with what they would need, and cells that there was no time for as such.
What there is is written after every step and cell to NAME.partial.json, so that a suite that is killed leaves it. The
exit code is 0 if everything ran and passed, 1 if not; a goal that is missed is a figure, not a failure.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from _gpu_cells import BASELINE, CELL_LEAST, Point, goals, grid, measure_cells, named, summary  # noqa: E402
from _gpu_processes import end_group, start  # noqa: E402

SECONDS = 470.0
"""The whole suite, all told."""
STEPS = ("build", "tests", "goals", "sanitize", "grid")
LIMITS = {"build": 120.0, "flashinfer": 200.0, "tests": 160.0, "sanitize": 90.0}
"""Seconds of each step; those of ``flashinfer`` run from the beginning, beside build and tests."""
CELL_MOST = 90.0
"""A cell that takes longer hangs. Slow ones take some 10 s; FlashInfer may still have to compile in the first."""
TAIL = 40
"""Lines of output that are kept of a step that fails."""
PYTEST = ["-q", "--tb=short", "-rfE", "--maxfail=25", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
"""Not the first failure alone: a machine is there for minutes. What cannot be imported fails by itself."""
GPU_TESTS = ("conformance", "emulator", "gpu", "measure")
"""Folders that have tests for a device: collecting all the others would take longer than running these."""
MODULES = [
    ("bfloat16", 128, 1, True),
    ("bfloat16", 128, 4, True),
    ("float16", 128, 1, False),
    *((dtype, dim, 1, False) for dtype in ("float16", "bfloat16") for dim in (64, 256)),
]
"""Dtype, head dim, group and whether all dense paths are wanted: the grid's first, then those of tests/gpu."""


def main() -> int:
    """Run everything; 0 if all of it ran and passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the JSON goes; results/published/<gpu>_kernel.json by default")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for everything")
    parser.add_argument("--only", default=",".join(STEPS), help=f"some of {','.join(STEPS)}")
    parser.add_argument("--go-on", type=Path, help="an earlier file: its cells that ended ok are taken over")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument("--cells", help=argparse.SUPPRESS)
    parser.add_argument("--warm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.warm:
        return warm_flashinfer(options.warm)
    if options.cells:
        return measure_cells(json.loads(options.cells), options.seconds, options.rehearse)
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(STEPS):
        print(f"error: there is no step {', '.join(sorted(unknown))}.\nnext:  --only some of {','.join(STEPS)}")
        return 2
    suite = Suite(options.rehearse, options.seconds)
    if options.go_on:
        suite.take_over(json.loads(options.go_on.read_text(encoding="utf-8")))
    return suite.run(options.out, chosen)


class Suite:
    """The steps, the clock over all of them, and what they gave."""

    def __init__(self, rehearse: bool, seconds: float) -> None:
        self.rehearse, self.begin, self.seconds = rehearse, time.monotonic(), seconds
        self.steps: list[dict[str, Any]] = []
        self.cells: dict[Point, dict[str, Any]] = {}
        self.facts: dict[str, Any] = {"gpus": [], "git": None}
        self.progress: Path | None = None

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.begin + self.seconds - time.monotonic()

    def take_over(self, earlier: dict[str, Any]) -> None:
        """Cells that an earlier suite has measured."""
        names = [field.name for field in dataclasses.fields(Point)]
        for cell in earlier["cells"]:
            if cell["status"] == "ok":
                self.cells[Point(*(cell[name] for name in names))] = {k: v for k, v in cell.items() if k not in names}

    def run(self, out: Path | None, chosen: Sequence[str] = STEPS) -> int:
        """The chosen steps in order, then the file."""
        from questbench.records import environment as probes

        self.facts = facts = probes.collect()
        if not self.rehearse and not facts["gpus"]:
            print("error: nvidia-smi shows no GPU here.\nnext:  python scripts/gpu_suite.py --rehearse")
            return 3
        path = out or self.default_path(facts)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.progress = path.with_suffix(".partial.json")
        try:
            self.steps_in_order(chosen)
        finally:
            result = self.result(facts)
            self.write(path, result)
            self.progress.unlink(missing_ok=True)
        summary(result)
        print(f"{path}: {time.monotonic() - self.begin:.0f} s")
        return 0 if result["passed"] else 1

    def steps_in_order(self, chosen: Sequence[str]) -> None:
        """See the module's docstring."""
        python, device = [sys.executable], "cpu" if self.rehearse else "cuda"
        warming, built, log = None, True, tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        if not self.rehearse and {"tests", "goals", "grid"} & set(chosen):
            warming = start([*python, __file__, "--warm", "all"], log)
        try:
            if "build" in chosen:
                where = [] if self.rehearse else ["--device", device]
                built = self.step("build", [*python, "-m", "questbench", "build", *where])
            if "tests" in chosen and built:
                self.step("tests", [*python, "-m", "pytest", *PYTEST, *_tests(self.rehearse)])
            if warming is not None:
                over = self.seconds - self.left
                self.end("flashinfer", warming, max(min(LIMITS["flashinfer"] - over, self.left), 1.0), log)
        finally:
            log.close()
            if warming is not None:
                end_group(warming)
        points = grid(self.rehearse)
        if not built:
            unbuilt = {"status": "not run", "reason": "the kernels were not built", "seconds": None}
            self.cells = {**{point: dict(unbuilt) for point in points}, **self.cells}
            return
        if "goals" in chosen:
            self.measure([point for point in points if point.goal is not None])
        if "sanitize" in chosen:
            check = ["--here", "--device", "cpu"] if self.rehearse else ["--seconds", f"{LIMITS['sanitize'] - 5:.0f}"]
            self.step("sanitize", [*python, str(ROOT / "scripts" / "gpu_sanitize.py"), *check])
        if "grid" in chosen:
            self.measure([point for point in points if point.goal is None])

    def default_path(self, facts: dict[str, Any]) -> Path:
        """Beside the other published results, named after the GPU; a rehearsal leaves nothing there."""
        from questbench.records import environment as probes

        if self.rehearse:
            return Path(tempfile.mkdtemp(prefix="questbench-rehearsal-")) / "kernel.json"
        return ROOT / "results" / "published" / f"{probes.slug(facts).replace('-', '_')}_kernel.json"

    def write(self, path: Path, result: dict[str, Any]) -> None:
        """Whole or not at all."""
        half = path.with_suffix(".writing")
        half.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        half.replace(path)

    def save(self) -> None:
        """What there is so far."""
        if self.progress is not None:
            self.write(self.progress, self.result(self.facts))

    def step(self, name: str, command: list[str]) -> bool:
        """Run one command within its limit; its end stands in the file. Whether it ended well."""
        print(f"{name}: {' '.join(command[1:])}", flush=True)
        return self.end(name, start(command), min(LIMITS[name], max(self.left, 1.0)))

    def end(self, name: str, process: subprocess.Popen[str], limit: float, log: IO[str] | None = None) -> bool:
        """Wait for a process, at most ``limit`` seconds; it and what it started are ended then.

        Args:
            log: where its output went, if not into a pipe.
        """
        begin = time.monotonic()
        try:
            text, _ = process.communicate(timeout=limit)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            code, text = None, end_group(process)
        if log is not None:
            log.seek(0)
            text = log.read()
        seconds = time.monotonic() - begin
        ended = "ok" if code == 0 else f"not finished within {limit:.0f} s" if code is None else f"exit code {code}"
        tail = [line for line in text.splitlines() if line.strip()][-(12 if code == 0 else TAIL) :]
        self.steps.append({"name": name, "seconds": round(seconds, 1), "ended": ended, "tail": tail})
        print(f"{name}: {ended} ({seconds:.0f} s)" + ("" if code == 0 else "\n  " + "\n  ".join(tail)), flush=True)
        self.save()
        return code == 0

    def measure(self, points: list[Point]) -> None:
        """Measure cells in processes of their own until they are done or the time is over."""
        missing = [point for point in points if point not in self.cells]
        while missing and self.left > CELL_LEAST:
            command = [sys.executable, __file__, "--seconds", f"{self.left:.1f}"]
            command += ["--cells", json.dumps([dataclasses.astuple(point) for point in missing])]
            command += ["--rehearse"] if self.rehearse else []
            code, current, said = self.child(command, missing[0])
            if code != 0:  # one cell took the process with it: it is not tried again
                why = f"no end within {CELL_MOST:.0f} s" if code is None else f"exit code {code}"
                self.cells.setdefault(current, {"status": "crashed", "reason": why, "said": said, "seconds": None})
                print(f"  {named(current)}: crashed, {why}\n    " + "\n    ".join(said), flush=True)
                self.save()
            missing = [point for point in missing if point not in self.cells]
            if code == 0 and missing:
                break  # no time for them
        for point in missing:
            self.cells[point] = {"status": "not run", "reason": "the time was over", "seconds": None}

    def child(self, command: list[str], current: Point) -> tuple[int | None, Point, list[str]]:
        """One process with its cells: its end (``None``: it hung and was ended), its last cell and last words."""
        hung = threading.Event()

        def end() -> None:
            hung.set()
            end_group(process, at_once=True)

        def watch() -> threading.Timer:
            timer = threading.Timer(CELL_MOST, end)
            timer.daemon = True
            timer.start()
            return timer

        process, said = start(command), []
        timer = watch()
        assert process.stdout is not None
        for line in process.stdout:
            try:
                message = json.loads(line)
                current = Point(*message["point"])
            except (ValueError, TypeError, KeyError):
                said = [*said, line.rstrip()][-12:]  # a library, or a traceback
                continue
            timer.cancel()
            timer = watch()
            if "cell" in message:
                self.cells[current] = message["cell"]
                print(f"  {named(current)}: {message['cell']['status']}, {message['cell']['seconds']} s", flush=True)
                self.save()
        code = process.wait()
        timer.cancel()
        return None if hung.is_set() else code, current, said

    def result(self, facts: dict[str, Any]) -> dict[str, Any]:
        """What the file holds."""
        cells = [{**dataclasses.asdict(point), **cell} for point, cell in self.cells.items()]
        steps_passed = all(step["ended"] == "ok" for step in self.steps)
        return {
            "what": "scripts/gpu_suite.py: one decode step of one layer, page 16, bf16, cold L2, CUDA graph replay",
            "rehearsal": self.rehearse,
            "dependent_launch": os.environ.get("QUESTBENCH_DEPENDENT_LAUNCH") != "0",
            "gpu": [device.get("name") for device in facts["gpus"]],
            "commit": facts["git"],
            "environment": facts,
            "seconds": round(time.monotonic() - self.begin, 1),
            "passed": steps_passed and not any(cell["status"] == "crashed" for cell in cells),
            "steps": self.steps,
            "goals": list(goals(cells)),
            "cells": cells,
        }


def warm_flashinfer(which: str) -> int:
    """Let FlashInfer compile what the grid and the tests need, while something else is built and tested.

    Every module is a process of its own: one after the other would take longer than everything else together.
    """
    import torch

    from questbench import kernels
    from questbench.kernels._paged import Paged

    if (reason := kernels.available().get(BASELINE)) is not None:
        print(reason)
        return 0
    if which == "all":
        running = [subprocess.Popen([sys.executable, __file__, "--warm", json.dumps(made)]) for made in MODULES]
        return max(process.wait() for process in running)
    name, dim, group, paths = json.loads(which)
    dtype, heads, ops = getattr(torch, name), 8, kernels.load(BASELINE)
    pages = torch.zeros((16, heads, 16, dim), dtype=dtype, device="cuda")
    q = torch.zeros((1, heads * group, dim), dtype=dtype, device="cuda")
    table = torch.arange(16, dtype=torch.int32, device="cuda")[None]
    lengths = torch.tensor([250], dtype=torch.int32, device="cuda")
    paged = Paged(pages, pages, table, lengths)
    if paths:
        _, left_out = ops.dense_paths(q, paged, dim**-0.5)
        print(*(f"{way}: {why}" for way, why in left_out.items()), sep="\n")
    else:
        ops.attend(q, paged, dim**-0.5)
    return 0


def _tests(rehearse: bool) -> list[str]:
    if rehearse:
        return ["tests/gpu/test_on_device.py", "-m", "not gpu"]
    return ["-m", "gpu", *(f"tests/{folder}" for folder in GPU_TESTS)]


if __name__ == "__main__":
    sys.exit(main())
