"""The table of ``kernel``: time, speed-up, and how far both are from what the machine allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from questbench.report import _format as fmt
from questbench.report._columns import Column, bandwidth, begin, fallback, fill, honest, number, rows_of, tokens
from questbench.report.frame import DENSE
from questbench.report.render import Table

if TYPE_CHECKING:
    import pandas as pd

TOO_MUCH = "mismeasured: more than the measured bandwidth of this machine (warm caches or miscounted traffic)"


def build(frame: pd.DataFrame, names: list[str]) -> list[Table]:
    """One table with a row per cell; blocks of equal inputs hold the methods that were measured together."""
    keys, shared = fmt.split_inputs(frame, names, always=("seq_len", "budget"))
    frame = fmt.in_blocks(frame, keys)
    divisor, unit = fmt.scale(fmt.column(frame, "latency"), "s")
    size, size_unit = fmt.scale(fmt.column(frame, "bytes"), "B")
    said = "Speed-ups are medians of paired ratios. ideal: the ratio of predicted traffic."
    counts = fmt.counts_line(frame)
    table = begin("Attention kernels: one decode step of one layer", frame, keys, shared, said, counts)

    def latency(row: Any) -> str:
        if fmt.missing(row.get("latency")):
            return fmt.gap(table, row)
        return fmt.spread(row["latency"], row.get("latency.p20"), row.get("latency.p80"), divisor)

    def speedup(row: Any) -> str:
        if row["fallback"]:
            return fallback(table)
        return fmt.number(_speedup(row)) + (f" {table.mark(why)}" if (why := mismeasured(row)) else "")

    def reached(row: Any) -> str:
        value, ideal = _speedup(row), _ideal(row)
        return fmt.number(None if fmt.missing(value) or fmt.missing(ideal) else value / ideal, 0.01)

    columns = [
        Column(f"latency ({unit})\nmedian [p20–p80]", latency),
        Column("x dense", speedup),
        *(Column(f"x {name}", honest(number(f"speedup.{name}")), spare=4) for name in fmt.rivals(frame)),
        Column("ideal x\nvs dense", honest(lambda row: fmt.number(_ideal(row))), spare=7),
        Column("% of\nideal", honest(reached), spare=5),
        Column("% of\nbandwidth", bandwidth(table, TOO_MUCH), spare=6),
        Column(f"traffic\n({size_unit})", number("bytes", size), spare=2),
        Column("tokens\nread", tokens("tokens_read"), spare=3),
        Column("tokens\nresident", tokens("tokens_resident"), spare=1),
    ]
    return [fill(table, rows_of(frame), keys, columns, _label).without_empty_columns()]


def _label(row: Any) -> str:
    """The method; a baseline with the way that it took: ``torch (folded)``."""
    way = row.get("latency.path")
    return f"{row['label']} ({way})" if row["baseline"] and isinstance(way, str) and way else str(row["label"])


def mismeasured(row: Any) -> str | None:
    """Why the speed-up of a cell cannot be right, or ``None``."""
    if row["baseline"] or not fmt.surely_above(row, "speedup.dense", row.get("ideal_speedup")):
        return None
    return "mismeasured: faster than the ratio of the traffic to dense allows (warm caches or a slow dense arm)"


def _speedup(row: Any) -> Any:
    """Over dense; 1 of dense itself."""
    own = row["method"] == DENSE and not fmt.missing(row.get("latency"))
    return 1.0 if own else row.get("speedup.dense")


def _ideal(row: Any) -> Any:
    return None if row["baseline"] else row.get("ideal_speedup")
