"""The cells of scripts/gpu_suite.py: the grid, its goals, measuring cell after cell, and the table at the end."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

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


def summary(result: dict[str, Any]) -> None:
    """The goals and the whole step of every cell, as a short table."""
    print(f"\n{'cell':<34}{'quest':>9}{'goal':>7}{'dense':>8}{'ideal':>8}{'us':>10}")
    for cell in result["cells"]:
        point = Point(cell["shape"], cell["seq_len"], cell["batch"], cell["budget"])
        if cell["status"] != "ok":
            print(f"{named(point):<34}  {cell['status']}: {cell['reason']}")
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
        print(f"{named(point):<34}{shown[0]:>9}{shown[1]:>7}{shown[2]:>8}{shown[3]:>8}{micro:>10}")


def _value(cell: dict[str, Any], method: str, metric: str, **where: str) -> float | None:
    for record in cell.get("records", ()):
        if record["method"] == method and record["metric"] == metric and where.items() <= record.items():
            return record["value"]  # type: ignore[no-any-return]
    return None


def named(point: Point) -> str:
    length = f"{point.seq_len // 1024}k" if point.seq_len >= 1024 else str(point.seq_len)
    return f"{point.shape} {length} b{point.batch} budget {point.budget}"
