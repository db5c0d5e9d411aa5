"""The table of ``kernel``: time, speed-up, and how far both are from what the machine allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from questbench.report import _format as fmt
from questbench.report.frame import BASELINES
from questbench.report.render import NONE, Cell, Table

if TYPE_CHECKING:
    import pandas as pd


OPTIONAL = ("tokens\nread", "x torch", "x flash-\ninfer", "% of\nideal", "% of\nbandwidth", "ideal x\nvs dense")

TOO_MUCH = "mismeasured: more than the measured bandwidth of this machine (warm caches or miscounted traffic)"


def build(frame: pd.DataFrame, names: list[str]) -> list[Table]:
    """One table with a row per cell; blocks of equal inputs hold the methods that were measured together."""
    keys, shared = fmt.split_inputs(frame, names, always=("seq_len", "budget"))
    frame = fmt.in_blocks(frame, keys, BASELINES)
    divisor, unit = fmt.scale(fmt.column(frame, "latency"), "s")
    size, size_unit = fmt.scale(fmt.column(frame, "bytes"), "B")
    headers = {key: key.replace("_", " ") for key in keys}
    latency = f"latency ({unit})\nmedian [p20–p80]"
    table = Table(
        title="Attention kernels: one decode step of one layer",
        columns=[
            *headers.values(),
            "method",
            latency,
            "x dense",
            "x torch",
            "x flash-\ninfer",
            "ideal x\nvs dense",
            "% of\nideal",
            "% of\nbandwidth",
            f"traffic\n({size_unit})",
            "tokens\nread",
            "tokens\nresident",
        ],
        text_columns=frozenset({"method"}),
        optional=("tokens\nresident", f"traffic\n({size_unit})", *OPTIONAL),
        keys=len(keys),
        setup=[
            fmt.shared_line(frame, shared),
            fmt.origin_line(frame),
            fmt.runs_line(frame),
            "Speed-ups are medians of paired ratios. ideal: the ratio of predicted traffic.",
            fmt.counts_line(frame),
        ],
        warnings=fmt.list_warnings(frame, keys),
    )
    for _, row in frame.iterrows():
        cells = [fmt.inputs(key, row[key]) for key in keys]
        untimed = fmt.missing(row.get("latency"))
        cells += [_label(row), fmt.gap(table, row) if untimed else _latency(row, divisor)]
        cells += _limits(table, row)
        cells += [
            fmt.number(row.get("bytes"), size),
            *(fmt.tokens(row.get(name)) for name in ("tokens_read", "tokens_resident")),
        ]
        table.rows.append([Cell(str(text)) for text in cells])
    return [table.without_empty_columns()]


def _label(row: Any) -> str:
    """The method; a baseline with the way that it took: ``torch (folded)``."""
    way = row.get("latency.path")
    return f"{row['label']} ({way})" if row["method"] in BASELINES and isinstance(way, str) and way else row["label"]


def mismeasured(row: Any) -> str | None:
    """Why the speed-up of a cell cannot be right, or ``None``."""
    if row["method"] in BASELINES or not fmt.surely_above(row, "speedup.dense", row.get("ideal_speedup")):
        return None
    return "mismeasured: faster than the ratio of the traffic to dense allows (warm caches or a slow dense arm)"


def _latency(row: Any, divisor: float) -> str:
    return fmt.spread(row["latency"], row.get("latency.p20"), row.get("latency.p80"), divisor)


def _limits(table: Table, row: Any) -> list[str]:
    """Speed-ups, ideal, and both distances to the limit."""
    share = row.get("bandwidth_fraction")
    used = fmt.number(share, 0.01)
    if fmt.surely_above(row, "bandwidth_fraction", 1):
        used += f" {table.mark(TOO_MUCH)}"
    if row["fallback"]:
        return [f"{fmt.FALLBACK} {table.mark(fmt.FALLBACK_NOTE)}", NONE, NONE, NONE, NONE, used]
    speedup, ideal = row.get("speedup.dense"), row.get("ideal_speedup")
    if fmt.missing(speedup) and row["method"] == "dense" and not fmt.missing(row.get("latency")):
        speedup = 1.0
    if row["method"] in BASELINES:
        ideal = None
    reached = None if fmt.missing(speedup) or fmt.missing(ideal) else speedup / ideal
    flag = f" {table.mark(why)}" if (why := mismeasured(row)) else ""
    return [
        fmt.number(speedup) + flag,
        fmt.number(row.get("speedup.torch")),
        fmt.number(row.get("speedup.flashinfer")),
        fmt.number(ideal),
        fmt.number(reached, 0.01),
        used,
    ]
