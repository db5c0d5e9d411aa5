"""The tables of ``e2e``: what a user waits for and what the bytes allow; what a step is made of; where methods win."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from questbench import units
from questbench.report import _format as fmt
from questbench.report.render import NONE, Cell, Table

if TYPE_CHECKING:
    import pandas as pd

STAGES = ("weights", "append", "score", "select", "attend", "evict", "rest")
BASELINE = "flashinfer"
"""Another library's dense attention in the same captured loop."""
OPTIONAL = ("tokens\nread", "slope\n(ms)", "prefill peak\n(GiB)", "decode peak\n(GiB)", "bounds\n(GiB)", "p99", "p90")
FIRST = "dense"


def build(frame: pd.DataFrame, names: list[str]) -> list[Table]:
    """Latency, parts and break-even; blocks of equal inputs hold the methods that were measured together."""
    keys, shared = fmt.split_inputs(frame, names, always=("seq_len", "budget"))
    frame = _sorted(frame, keys)
    tables = [_latency(frame, keys, shared), _parts(frame, keys), _break_even(frame, keys)]
    return [table.without_empty_columns() for table in tables if table.rows]


def _latency(frame: pd.DataFrame, keys: list[str], shared: list[str]) -> Table:
    divisor, unit = fmt.scale(fmt.column(frame, "tpot"), "s")
    giga = float(1 << 30)
    columns = [
        f"time per token ({unit})\nmedian [p20–p80]",
        "p90",
        "p99",
        f"slope\n({unit})",
        "tokens/s",
        f"bound\n({unit})",
        "% of\nbandwidth",
        "x dense",
        "ideal x\nvs dense",
        "x flash-\ninfer",
        "TTFT (s)",
        "KV\n(GiB)",
        "bounds\n(GiB)",
        "weights\n(GiB)",
        "prefill peak\n(GiB)",
        "decode peak\n(GiB)",
        "tokens\nread",
    ]
    table = Table(
        title="End to end: the whole model, one token after the other",
        columns=[*(key.replace("_", " ") for key in keys), "method", *columns],
        text_columns=frozenset({"method"}),
        optional=tuple(name.replace("(ms)", f"({unit})") for name in OPTIONAL),
        keys=len(keys),
        setup=[
            fmt.shared_line(frame, shared),
            fmt.origin_line(frame),
            "bound is what weights and KV entries take at the read bandwidth measured in the same rounds; ideal is "
            "the ratio of bytes. Speed-ups are medians of paired ratios.",
            fmt.counts_line(frame),
            *_paths(frame, keys),
            *_rivals(frame, keys),
        ],
        warnings=fmt.list_warnings(frame, keys),
    )
    table.setup = [line for line in table.setup if line]
    for _, row in frame.iterrows():
        missing = fmt.missing(row.get("tpot"))
        spread = fmt.spread(row.get("tpot"), row.get("tpot.p20"), row.get("tpot.p80"), divisor)
        cells = [*(fmt.inputs(key, row[key]) for key in keys), row["label"], fmt.gap(table, row) if missing else spread]
        cells += [fmt.number(row.get(name), divisor) for name in ("tpot.p90", "tpot.p99", "tpot_slope")]
        cells += [fmt.number(row.get("tokens_per_second")), fmt.number(row.get("bound"), divisor)]
        cells.append(_share(table, row))
        cells += _speedup(table, row)
        cells.append(fmt.number(row.get("ttft")))
        cells += [fmt.number(row.get(name), giga) for name in ("kv_bytes", "bounds_bytes", "weights_bytes")]
        cells += [fmt.number(row.get(f"peak_memory.{stage}"), giga) for stage in ("prefill", "decode")]
        cells.append(fmt.tokens(row.get("tokens_read")))
        table.rows.append([Cell(str(text)) for text in cells])
    return table


def _share(table: Table, row: Any) -> str:
    share = row.get("bandwidth_fraction")
    text = fmt.number(share, 0.01)
    if not fmt.missing(share) and share > 1:
        text += f" {table.mark('mismeasured: more than the measured bandwidth of this machine')}"
    return text


def _speedup(table: Table, row: Any) -> list[str]:
    """Speed-ups over our own dense, with its limit, and over another library's.

    A loss is shown like a gain, a fallback is no speed-up at all.
    """
    if row["fallback"]:
        return [f"{fmt.FALLBACK} {table.mark(fmt.FALLBACK_NOTE)}", NONE, NONE]
    speedup, ideal = row.get("speedup.dense"), row.get("ideal_speedup")
    if row["method"] == FIRST and not fmt.missing(row.get("tpot")):
        speedup = 1.0
    text = fmt.number(speedup)
    if not fmt.missing(speedup) and not fmt.missing(ideal) and speedup > ideal:
        text += f" {table.mark('mismeasured: faster than the ratio of bytes to dense allows')}"
    return [text, fmt.number(ideal), fmt.number(row.get(f"speedup.{BASELINE}"))]


def _paths(frame: pd.DataFrame, keys: list[str]) -> list[str]:
    """Which of its paths the other library's attention took, block by block."""
    lines = []
    for _, row in frame[frame["method"] == BASELINE].iterrows():
        if fmt.missing(row.get("tpot")):
            continue
        where = ", ".join(fmt.inputs(key, row[key]) for key in keys)
        lines.append(
            f"{BASELINE} is the same captured loop with its dense attention ({where}): {row['args'].get('path')}, the "
            "fastest of its paths that work here"
        )
    return lines


def _rivals(frame: pd.DataFrame, keys: list[str]) -> list[str]:
    """One line per cache of transformers: how much faster our dense loop was."""
    lines = []
    for column in frame.columns:
        if column.startswith("speedup.transformers_") and column.count(".") == 1:
            for _, row in frame[frame["method"] == FIRST].iterrows():
                if not fmt.missing(row.get(column)):
                    where = ", ".join(fmt.inputs(key, row[key]) for key in keys)
                    name = column.removeprefix("speedup.transformers_")
                    level = fmt.number(row.get(f"{column}.normalised"))
                    lines.append(
                        f"Our dense loop against transformers' {name} cache ({where}): {fmt.number(row[column])}x, "
                        f"{level}x at equal bandwidth (one cache in memory at a time, so not in the same rounds)"
                    )
    return lines


def _parts(frame: pd.DataFrame, keys: list[str]) -> Table:
    """Where the time of a step goes; ops are called one by one for this."""
    divisor, unit = fmt.scale(fmt.column(frame, "tpot.staged"), "s")
    table = Table(
        title="Parts of a step",
        columns=[
            *(key.replace("_", " ") for key in keys),
            "method",
            *(f"{stage}\n({unit})" for stage in STAGES),
            f"all\n({unit})",
            "weights:\n% of step",
            "weights:\n% of bandwidth",
            "linear\nlayers by",
        ],
        text_columns=frozenset({"method", "linear\nlayers by"}),
        keys=len(keys),
        setup=["Each op is called alone here, so that all may be more than a step takes."],
    )
    for _, row in frame.iterrows():
        if fmt.missing(row.get("tpot.staged")):
            continue
        cells = [*(fmt.inputs(key, row[key]) for key in keys), str(row["label"])]
        cells += [fmt.number(row.get(f"tpot.{stage}"), divisor) for stage in (*STAGES, "staged")]
        cells += [
            fmt.number(row.get("tpot.weights.share"), 0.01),
            fmt.number(row.get("tpot.weights.bandwidth_fraction"), 0.01),
            str(row.get("tpot.linear") or NONE),
        ]
        table.rows.append([Cell(text) for text in cells])
    return table


def _break_even(frame: pd.DataFrame, keys: list[str]) -> Table:
    """Per method and set-up: from which length on it wins, by bytes and as measured over the lengths of the sweep."""
    others = [key for key in keys if key != "seq_len"]
    table = Table(
        title="Break-even: the text length at which a method starts to win over dense",
        columns=[*(key.replace("_", " ") for key in others), "method", "by bytes", "measured"],
        text_columns=frozenset({"method", "measured"}),
        keys=len(others),
        setup=["Measured is where the speed-up crosses 1, between two lengths of the sweep on a logarithmic scale."],
    )
    if "speedup.dense" not in frame or frame.empty:
        return table
    sparse = frame[(frame["method"] != FIRST) & ~frame["fallback"] & frame["speedup.dense"].notna()]
    for values, part in sparse.groupby([*others, "label"], sort=False, dropna=False):
        points = sorted(zip(part["seq_len"], part["speedup.dense"], strict=True))
        by_bytes = next((value for value in fmt.column(part, "break_even") if value is not None), None)
        cells = [fmt.inputs(key, value) for key, value in zip(others, values, strict=False)]
        cells += [str(values[-1]), fmt.tokens(by_bytes), crossing(points)]
        table.rows.append([Cell(text) for text in cells])
    return table


def crossing(points: list[tuple[float, float]]) -> str:
    """Where the speed-up over (length, speed-up) points in ascending order reaches 1 for good."""
    lengths = [units.count(int(length)) for length, _ in points]
    if points[-1][1] < 1:
        return f"not up to {lengths[-1]}"
    losing = [place for place, (_, speedup) in enumerate(points) if speedup < 1]
    if not losing:
        return f"at or below {lengths[0]}"
    (left, low), (right, high) = points[losing[-1]], points[losing[-1] + 1]
    part = (1 - low) / (high - low)
    return f"about {math.exp(math.log(left) + part * (math.log(right) - math.log(left))):,.0f}"


def _sorted(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    rank = {method: number for number, method in enumerate(dict.fromkeys([FIRST, BASELINE, *frame["method"]]))}
    by = [key for key in keys if key in frame]
    ranked = frame.assign(_rank=frame["method"].map(rank))
    return ranked.sort_values([*by, "_rank"], kind="stable").reset_index(drop=True)
