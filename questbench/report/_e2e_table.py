"""The tables of ``e2e``: what a user waits for and what the bytes allow; what a step is made of; where methods win."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from questbench import units
from questbench.report import _format as fmt
from questbench.report._columns import Column, bandwidth, begin, fallback, fill, honest, number, rows_of, tokens
from questbench.report.frame import DENSE
from questbench.report.render import NONE, Table

if TYPE_CHECKING:
    import pandas as pd

TOO_MUCH = "mismeasured: more than the measured bandwidth of this machine"
STAGES = ("weights", "append", "score", "select", "attend", "evict", "rest")
MEMORY = {"kv_bytes": "KV", "bounds_bytes": "bounds", "weights_bytes": "weights"}
PEAKS = {"peak_memory.prefill": "prefill peak", "peak_memory.decode": "decode peak"}
ABOVE_IDEAL = "mismeasured: faster than the ratio of bytes to dense allows"


def build(frame: pd.DataFrame, names: list[str]) -> list[Table]:
    """Latency, parts and break-even; blocks of equal inputs hold the methods that were measured together."""
    keys, shared = fmt.split_inputs(frame, names, always=("seq_len", "budget"))
    frame = fmt.in_blocks(frame, keys)
    tables = [_latency(frame, keys, shared), _parts(frame, keys), _break_even(frame, keys)]
    return [table.without_empty_columns() for table in tables if table.rows]


def _latency(frame: pd.DataFrame, keys: list[str], shared: list[str]) -> Table:
    divisor, unit = fmt.scale(fmt.column(frame, "tpot"), "s")
    held = [value for name in (*MEMORY, *PEAKS) for value in fmt.column(frame, name) if value is not None]
    size, size_unit = fmt.scale([max(held, default=0)], "B")
    said = (
        "bound: the time to read the weights and the KV entries at the bandwidth measured in the same rounds. "
        "ideal: the ratio of bytes read. Speed-ups are medians of paired ratios."
    )
    more = (said, fmt.counts_line(frame), *_paths(frame, keys), *_rivals(frame, keys))
    table = begin("End to end: the whole model, one token after the other", frame, keys, shared, *more)

    def latency(row: Any) -> str:
        if fmt.missing(row.get("tpot")):
            return fmt.gap(table, row)
        return fmt.spread(row["tpot"], row.get("tpot.p20"), row.get("tpot.p80"), divisor)

    def speedup(row: Any) -> str:
        """A loss is shown like a gain, a fallback is no speed-up at all."""
        if row["fallback"]:
            return fallback(table)
        if row["method"] == DENSE:
            return fmt.number(row.get("speedup.dense") if fmt.missing(row.get("tpot")) else 1.0)
        above = fmt.surely_above(row, "speedup.dense", row.get("ideal_speedup"))
        return fmt.number(row.get("speedup.dense")) + (f" {table.mark(ABOVE_IDEAL)}" if above else "")

    columns = [
        Column(f"time per token ({unit})\nmedian [p20–p80]", latency),
        Column(f"p90\n({unit})", number("tpot.p90", divisor), spare=6),
        Column(f"p99\n({unit})", number("tpot.p99", divisor), spare=5),
        Column(f"slope\n({unit})", number("tpot_slope", divisor), spare=2),
        Column("tokens/s", number("tokens_per_second"), spare=8),
        Column(f"bound\n({unit})", number("bound", divisor), spare=12),
        Column("% of\nbandwidth", bandwidth(table, TOO_MUCH), spare=9),
        Column("x dense", speedup),
        Column("ideal x\nvs dense", honest(number("ideal_speedup")), spare=13),
        *(Column(f"x {name}", honest(number(f"speedup.{name}"))) for name in fmt.rivals(frame)),
        Column("TTFT (s)", number("ttft")),
        Column("prompt\ntokens/s", _prompt_speed, spare=11),
        *(
            Column(f"{said}\n({size_unit})", number(name, size), spare)
            for (name, said), spare in zip((MEMORY | PEAKS).items(), (10, 4, 7, 3, 3), strict=True)
        ),
        Column("tokens\nread", tokens("tokens_read"), spare=1),
    ]
    return fill(table, rows_of(frame), keys, columns)


def _prompt_speed(row: Any) -> str:
    """Tokens of all prompts of the batch over the time to the first token."""
    seconds, tokens = row.get("ttft"), row.get("seq_len")
    if fmt.missing(seconds) or fmt.missing(tokens) or seconds <= 0:
        return NONE
    batch = row.get("batch")
    return fmt.number(tokens * (1 if fmt.missing(batch) else batch) / seconds)


def _where(row: Any, keys: list[str]) -> str:
    return ", ".join(fmt.inputs(key, row[key]) for key in keys)


def _paths(frame: pd.DataFrame, keys: list[str]) -> list[str]:
    """Which of its paths the attention of another library took, block by block."""
    timed = frame[frame["method"].isin(fmt.rivals(frame)) & ~frame["tpot"].isna()] if "tpot" in frame else frame[:0]
    return [
        f"{row['method']} is the same captured loop with its dense attention ({_where(row, keys)}): "
        f"{row['args'].get('path')}, the fastest of its paths that work here"
        for row in rows_of(timed)
    ]


def _rivals(frame: pd.DataFrame, keys: list[str]) -> list[str]:
    """One line per whole step of another library: how much faster our dense loop was."""
    lines = []
    for name in fmt.rivals(frame, apart=True):
        ratio, said = f"speedup.{name}", name.replace("_", " ")
        lines += [
            f"Our dense loop against {said} ({_where(row, keys)}): {fmt.number(row[ratio])}x, "
            f"{fmt.number(row.get(f'{ratio}.normalised'))}x at equal bandwidth"
            for row in rows_of(frame[(frame["method"] == DENSE) & frame[ratio].notna()])
        ]
    if lines:
        lines.append("Steps of other libraries are timed one at a time, not in the same rounds as ours.")
    return lines


def _parts(frame: pd.DataFrame, keys: list[str]) -> Table:
    """Where the time of a step goes; ops are called one by one for this."""
    divisor, unit = fmt.scale(fmt.column(frame, "tpot.staged"), "s")
    said = "Here each op is called on its own, so together they may take longer than a step."
    table = Table("Parts of a step", [], setup=[said])

    def share(row: Any) -> str:
        text = fmt.number(row.get("tpot.weights.bandwidth_fraction"), 0.01)
        low = row.get("tpot.weights.bandwidth_fraction_low")
        return f"{text} {table.mark(TOO_MUCH)}" if not fmt.missing(low) and low > 1 else text

    columns = [
        *(Column(f"{stage}\n({unit})", number(f"tpot.{stage}", divisor)) for stage in STAGES),
        Column(f"all\n({unit})", number("tpot.staged", divisor)),
        Column("weights:\n% of step", number("tpot.weights.share", 0.01)),
        Column("weights:\n% of bandwidth", share),
        Column("linear\nlayers by", lambda row: str(row.get("tpot.linear") or NONE), words=True),
    ]
    rows = [row for row in rows_of(frame) if not fmt.missing(row.get("tpot.staged"))]
    return fill(table, rows, keys, columns)


def _break_even(frame: pd.DataFrame, keys: list[str]) -> Table:
    """Per method and set-up: from which length on it wins, by bytes and as measured over the lengths of the sweep."""
    others = [key for key in keys if key != "seq_len"]
    said = (
        "measured: where the speed-up crosses 1, interpolated between two lengths of the sweep on a logarithmic scale. "
        "A length at which the interval of the speed-up contains 1 does not count."
    )
    table = Table("Break-even: the text length at which a method starts to win over dense", [], setup=[said])
    if "speedup.dense" not in frame or frame.empty:
        return table
    sparse = frame[(frame["method"] != DENSE) & ~frame["fallback"] & frame["speedup.dense"].notna()]
    rows = []
    for values, part in sparse.groupby([*others, "label"], sort=False, dropna=False):
        lengths = list(rows_of(part.sort_values("seq_len")))
        points = [(row["seq_len"], row["speedup.dense"], *fmt.ends(row, "speedup.dense")) for row in lengths]
        by_bytes = next((value for value in fmt.column(part, "break_even") if value is not None), None)
        known = dict(zip([*others, "label"], values, strict=True))
        rows.append({**known, "by_bytes": by_bytes, "measured": crossing(points)})
    columns = [
        Column("by bytes", tokens("by_bytes")),
        Column("measured", lambda row: str(row["measured"]), words=True),
    ]
    return fill(table, rows, others, columns)


def crossing(points: list[tuple[float, float, float, float]]) -> str:
    """From which length on the method wins for good.

    Args:
        points: length, speed-up and the two ends of its interval, in ascending order of length. A speed-up is a gain
            only if its whole interval is above 1, and a loss only if it is below.
    """
    lengths = [units.count(int(point[0])) for point in points]
    gains = [low > 1 for _, _, low, _ in points]
    losses = [high < 1 for _, _, _, high in points]
    if losses[-1]:
        return f"not up to {lengths[-1]}"
    if not gains[-1]:
        return f"undecided up to {lengths[-1]}"
    if all(gains):
        return f"at or below {lengths[0]}"
    place = max(number for number, gain in enumerate(gains) if not gain)
    (left, low, *_), (right, high, *_) = points[place], points[place + 1]
    if losses[place]:
        part = (1 - low) / (high - low)
        return f"about {math.exp(math.log(left) + part * (math.log(right) - math.log(left))):,.0f}"
    lost = [number for number in range(place) if losses[number]]
    return f"between {lengths[lost[-1]]} and {lengths[place + 1]}" if lost else f"at or below {lengths[place + 1]}"
