"""Records as an experiment would write them, small."""

from __future__ import annotations

from typing import Any

from questbench.records.schema import ResultRecord

ENVIRONMENT = {"machine": "Test CPU, 2 cores", "cpu": {"model": "Test CPU"}, "gpus": []}
CONFIG = {"seq_len": [8192], "budget": [512], "out": "results"}


def record(method: str = "quest", metric: str = "latency", value: float | None = 1e-3, **changes: Any) -> ResultRecord:
    """One kernel record; ``params`` in ``changes`` are merged into the defaults."""
    params = {"seq_len": 8192, "budget": 512, "stage": "total", **changes.pop("params", {})}
    fields: dict[str, Any] = {
        "run": "",
        "kind": "kernel",
        "status": "ok",
        "method": method,
        "method_args": {},
        "backend": "reference",
        "params": params,
        "metric": metric,
        "unit": "s",
        "value": value,
        **changes,
    }
    return ResultRecord(**fields)


def cell(index: int, size: int = 3) -> list[ResultRecord]:
    """All records of one cell: ``size`` metrics that share one identity."""
    return [record(metric=f"metric{number}", value=float(index), params={"index": index}) for number in range(size)]
