"""Build, test, check and measure the CUDA kernels on one GPU, in under 8 minutes; writes one JSON file.

    python scripts/gpu_suite.py --out results/published/h200_kernel.json
    python scripts/gpu_suite.py --rehearse        the same flow on the CPU with tiny shapes, in about a minute

In this order, so that what matters most is there if the time runs out:

    build       the kernels; FlashInfer compiles its own meanwhile
    tests       pytest -m gpu
    grid        the cells that the goals are about
    sanitize    compute-sanitizer memcheck and racecheck (scripts/gpu_sanitize.py)
    grid        shape x length x batch x budget: own dense, FlashInfer's best dense path, torch, every method, stages

The grid runs in processes of its own: a kernel that crashes loses its cell and no other. Cells that do not fit in
memory are recorded with what they would need, and cells that there was no time for as such. The exit code is 0 if
everything ran and passed, 1 if not; a goal that is missed is a figure, not a failure.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 470.0
"""The whole suite, all told."""
LIMITS = {"build": 120.0, "tests": 150.0, "sanitize": 60.0}
CELL_SECONDS = 1.5
"""Timed rounds of one cell; set-up, choosing the baseline and the stages come on top."""
CELL_LEAST = 6.0
"""No cell is begun with less time left than this, or than the slowest cell so far took."""
METHODS = ["dense", "quest", "h2o", "tova", "streaming_llm"]
MHA, GQA = "llama-2-7b", "llama-3.1-8b"
GOALS = {
    (MHA, 32768, 1): 7.03,
    (MHA, 131072, 1): 12.0,
    (GQA, 32768, 1): 3.5,
    (GQA, 131072, 1): 7.0,
    (MHA, 32768, 8): 7.0,
    (MHA, 32768, 32): 7.0,
    (GQA, 32768, 8): 7.0,
    (GQA, 32768, 32): 7.0,
}
"""Quest's whole step over FlashInfer's best dense path at budget 2048 and page 16, on an H200."""
GOAL_BUDGET = 2048
DENSE_GOAL = 0.9
"""Own dense over FlashInfer's best: no more than 10 % slower."""
BASELINE = "flashinfer"


@dataclasses.dataclass(frozen=True)
class Point:
    """One cell of the grid."""

    shape: str
    seq_len: int
    batch: int
    budget: int

    @property
    def goal(self) -> float | None:
        """What the step should reach, where there is a goal."""
        return GOALS.get((self.shape, self.seq_len, self.batch)) if self.budget == GOAL_BUDGET else None


def grid(rehearse: bool) -> list[Point]:
    """All cells: those with a goal first, then the smaller before the larger, the goals' budget before the others."""
    lengths, batches, budgets = (8192, 32768, 131072), (1, 8, 32), (1024, 2048, 4096)
    if rehearse:
        lengths, batches, budgets = (256, 512), (1, 2), (64, GOAL_BUDGET)
    points = [Point(s, t, b, n) for s in (MHA, GQA) for t in lengths for b in batches for n in budgets]
    return sorted(points, key=lambda p: (p.goal is None, p.budget != GOAL_BUDGET, p.seq_len * p.batch, p.shape))


def config_of(point: Point, rehearse: bool) -> Any:
    """The configuration of ``questbench kernel`` for one cell."""
    from questbench.experiments.kernel import KernelConfig

    small: dict[str, Any] = {}
    if rehearse:
        kv_heads = 4 if point.shape == MHA else 1
        small = {"heads": 4, "kv_heads": kv_heads, "head_dim": 64, "threads": 1, "rounds": 3}
    return KernelConfig(
        methods=METHODS,
        seq_lens=[point.seq_len],
        budgets=[point.budget],
        batch=[point.batch],
        shape=point.shape,
        device="cpu" if rehearse else "cuda",
        max_seconds=0.2 if rehearse else CELL_SECONDS,
        **small,
    )


def main() -> int:
    """Run everything; 0 if all of it ran and passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the JSON goes; results/published/<gpu>_kernel.json by default")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for everything")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument("--cells", help=argparse.SUPPRESS)
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.warm:
        return warm_flashinfer()
    if options.cells:
        return measure_cells(json.loads(options.cells), options.seconds, options.rehearse)
    return Suite(options.rehearse, options.seconds).run(options.out)


class Suite:
    """The steps, the clock over all of them, and what they gave."""

    def __init__(self, rehearse: bool, seconds: float) -> None:
        self.rehearse, self.begin, self.seconds = rehearse, time.monotonic(), seconds
        self.steps: list[dict[str, Any]] = []
        self.cells: dict[Point, dict[str, Any]] = {}

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.begin + self.seconds - time.monotonic()

    def run(self, out: Path | None) -> int:
        """All steps in order, then the file."""
        from questbench.records import environment as probes

        facts = probes.collect()
        if not self.rehearse and not facts["gpus"]:
            print("error: nvidia-smi shows no GPU here.\nnext:  python scripts/gpu_suite.py --rehearse")
            return 3
        python, device = [sys.executable], "cpu" if self.rehearse else "cuda"
        warming = None if self.rehearse else subprocess.Popen([*python, __file__, "--warm"], env=_environment())
        self.step("build", [*python, "-m", "questbench", "build", *([] if self.rehearse else ["--device", device])])
        tests = ["tests/gpu/test_on_device.py", "-m", "not gpu"] if self.rehearse else ["-m", "gpu", "tests"]
        self.step("tests", [*python, "-m", "pytest", "-q", "-x", *tests])
        if warming is not None:
            warming.wait()
        points = grid(self.rehearse)
        self.measure([point for point in points if point.goal is not None])
        check = ["--here", "--device", "cpu"] if self.rehearse else []
        self.step("sanitize", [*python, str(ROOT / "scripts" / "gpu_sanitize.py"), *check])
        self.measure([point for point in points if point.goal is None])
        result = self.result(facts)
        path = out or self.default_path(facts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        summary(result)
        print(f"{path}: {time.monotonic() - self.begin:.0f} s")
        return 0 if result["passed"] else 1

    def default_path(self, facts: dict[str, Any]) -> Path:
        """Beside the other published results, named after the GPU; a rehearsal leaves nothing there."""
        from questbench.records import environment as probes

        if self.rehearse:
            return Path(tempfile.mkdtemp(prefix="questbench-rehearsal-")) / "kernel.json"
        return ROOT / "results" / "published" / f"{probes.slug(facts).replace('-', '_')}_kernel.json"

    def step(self, name: str, command: list[str]) -> None:
        """Run one command within its limit; its end stands in the file."""
        limit, start = min(LIMITS[name], max(self.left, 1.0)), time.monotonic()
        print(f"{name}: {' '.join(command[1:])}", flush=True)
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=limit, check=False
            )
            code, text = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired as expired:
            said = [
                part.decode() if isinstance(part, bytes) else part or "" for part in (expired.stdout, expired.stderr)
            ]
            code, text = None, "".join(said)
        seconds = time.monotonic() - start
        tail = [line for line in text.splitlines() if line.strip()][-12:]
        ended = "ok" if code == 0 else f"not finished within {limit:.0f} s" if code is None else f"exit code {code}"
        self.steps.append({"name": name, "seconds": round(seconds, 1), "ended": ended, "tail": tail})
        print(f"{name}: {ended} ({seconds:.0f} s)" + ("" if code == 0 else "\n  " + "\n  ".join(tail)), flush=True)

    def measure(self, points: list[Point]) -> None:
        """Measure cells in processes of their own until they are done or the time is over."""
        missing = [point for point in points if point not in self.cells]
        while missing and self.left > CELL_LEAST:
            command = [sys.executable, __file__, "--seconds", f"{self.left:.1f}"]
            command += ["--cells", json.dumps([dataclasses.astuple(point) for point in missing])]
            command += ["--rehearse"] if self.rehearse else []
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment(), cwd=ROOT)
            assert process.stdout is not None
            current = missing[0]
            for line in process.stdout:
                message = json.loads(line)
                current = Point(*message["point"])
                if "cell" in message:
                    self.cells[current] = message["cell"]
                    print(
                        f"  {_named(current)}: {message['cell']['status']}, {message['cell']['seconds']} s", flush=True
                    )
            code = process.wait()
            if code != 0:  # one cell took the process with it: it is not tried again
                self.cells.setdefault(current, {"status": "crashed", "reason": f"exit code {code}", "seconds": None})
            missing = [point for point in missing if point not in self.cells]
            if code == 0 and missing:
                break  # no time for them
        for point in missing:
            self.cells[point] = {"status": "not run", "reason": "the time was over", "seconds": None}

    def result(self, facts: dict[str, Any]) -> dict[str, Any]:
        """What the file holds."""
        cells = [{**dataclasses.asdict(point), **cell} for point, cell in self.cells.items()]
        steps_passed = all(step["ended"] == "ok" for step in self.steps)
        return {
            "what": "scripts/gpu_suite.py: one decode step of one layer, page 16, bf16, cold L2, CUDA graph replay",
            "rehearsal": self.rehearse,
            "gpu": [device.get("name") for device in facts["gpus"]],
            "commit": facts["git"],
            "environment": facts,
            "seconds": round(time.monotonic() - self.begin, 1),
            "passed": steps_passed and not any(cell["status"] == "crashed" for cell in cells),
            "steps": self.steps,
            "goals": list(goals(cells)),
            "cells": cells,
        }


def goals(cells: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What was reached of every goal; ``None`` where the cell or the baseline is missing."""
    for cell in cells:
        point = Point(cell["shape"], cell["seq_len"], cell["batch"], cell["budget"])
        if point.goal is None and cell["status"] != "ok":
            continue
        if point.goal is not None:
            reached = _value(cell, "quest", "speedup", baseline=BASELINE)
            yield {**dataclasses.asdict(point), "what": "quest", "goal": point.goal, "reached": reached}
        dense = _value(cell, "dense", "speedup", baseline=BASELINE)
        yield {**dataclasses.asdict(point), "what": "dense", "goal": DENSE_GOAL, "reached": dense}


def measure_cells(cells: list[list[Any]], seconds: float, rehearse: bool) -> int:
    """In a process of its own: one JSON line when a cell begins, one when it is done."""
    from questbench.experiments import kernel

    end, slowest = time.monotonic() + seconds, CELL_LEAST
    for fields in cells:
        if time.monotonic() + slowest > end:
            return 0
        print(json.dumps({"point": fields}), flush=True)
        start = time.monotonic()
        config = config_of(Point(*fields), rehearse)
        kernel.check(config)
        records = [record for unit in kernel.run(config) for record in unit.records]
        spent = time.monotonic() - start
        slowest = max(slowest, spent)
        failed = [record.reason for record in records if record.status == "failed"]
        cell = {
            "status": "failed" if failed else "ok",
            "reason": failed[0] if failed else None,
            "seconds": round(spent, 1),
            "records": [] if failed else [_short(record) for record in records],
        }
        print(json.dumps({"point": fields, "cell": cell}), flush=True)
    return 0


def _short(record: Any) -> dict[str, Any]:
    """A record without its raw samples and without what the cell says already."""
    kept = {"method": record.method, "metric": record.metric, "unit": record.unit, "value": record.value}
    kept |= {name: record.params[name] for name in ("stage", "baseline") if name in record.params}
    names = ("p20", "p80", "n", "copies", "bandwidth", "probe", "path", "paths", "left_out")
    kept |= {name: record.stats[name] for name in names if name in record.stats}
    if record.status != "ok":
        kept |= {"status": record.status, "reason": record.reason}
    if record.warnings:
        kept["warnings"] = record.warnings
    return kept


def warm_flashinfer() -> int:
    """Let FlashInfer compile what the grid needs, while something else is built and tested."""
    import torch

    from questbench import kernels
    from questbench.models.shapes import SHAPES

    if kernels.available().get(BASELINE) is not None:
        return 0
    for shape in (SHAPES[MHA], SHAPES[GQA]):
        pages = torch.zeros((16, shape.kv_heads, 16, shape.head_dim), dtype=torch.bfloat16, device="cuda")
        q = torch.zeros((1, shape.heads, shape.head_dim), dtype=torch.bfloat16, device="cuda")
        table = torch.arange(16, dtype=torch.int32, device="cuda")[None]
        lengths = torch.tensor([250], dtype=torch.int32, device="cuda")
        kernels.load(BASELINE).dense_paths(q, pages, pages, table, lengths, shape.head_dim**-0.5)
    return 0


def summary(result: dict[str, Any]) -> None:
    """The goals and the whole step of every cell, as a short table."""
    print(f"\n{'cell':<34}{'quest':>9}{'goal':>7}{'dense':>8}{'ideal':>8}{'us':>10}")
    for cell in result["cells"]:
        point = Point(cell["shape"], cell["seq_len"], cell["batch"], cell["budget"])
        if cell["status"] != "ok":
            print(f"{_named(point):<34}  {cell['status']}: {cell['reason']}")
            continue
        values = [
            _value(cell, "quest", "speedup", baseline=BASELINE),
            point.goal,
            _value(cell, "dense", "speedup", baseline=BASELINE),
            _value(cell, "quest", "ideal_speedup"),
        ]
        latency = _value(cell, "quest", "latency", stage="total")
        shown = [f"{value:.2f}" if value is not None else "-" for value in values]
        micro = f"{latency * 1e6:.1f}" if latency is not None else "-"
        print(f"{_named(point):<34}{shown[0]:>9}{shown[1]:>7}{shown[2]:>8}{shown[3]:>8}{micro:>10}")


def _value(cell: dict[str, Any], method: str, metric: str, **where: str) -> float | None:
    for record in cell.get("records", ()):
        if record["method"] == method and record["metric"] == metric and where.items() <= record.items():
            return record["value"]  # type: ignore[no-any-return]
    return None


def _named(point: Point) -> str:
    length = f"{point.seq_len // 1024}k" if point.seq_len >= 1024 else str(point.seq_len)
    return f"{point.shape} {length} b{point.batch} budget {point.budget}"


def _environment() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths, "TRANSFORMERS_VERBOSITY": "error"}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
