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
BYTES = ("kv_bytes", "bounds_bytes", "weights_bytes", "peak_memory.prefill", "peak_memory.decode")
FIRST = "dense"
PROMPT = "prompt\ntokens/s"
TOO_MUCH = "mismeasured: more than the measured bandwidth of this machine"


def build(frame: pd.DataFrame, names: list[str]) -> list[Table]:
    """Latency, parts and break-even; blocks of equal inputs hold the methods that were measured together."""
    keys, shared = fmt.split_inputs(frame, names, always=("seq_len", "budget"))
    frame = fmt.in_blocks(frame, keys, (FIRST, BASELINE))
    tables = [_latency(frame, keys, shared), _parts(frame, keys), _break_even(frame, keys)]
    return [table.without_empty_columns() for table in tables if table.rows]


def _latency(frame: pd.DataFrame, keys: list[str], shared: list[str]) -> Table:
    divisor, unit = fmt.scale(fmt.column(frame, "tpot"), "s")
    held = [value for name in BYTES for value in fmt.column(frame, name) if value is not None]
    size, size_unit = fmt.scale([max(held, default=0)], "B")
    slope, memory = f"slope\n({unit})", [f"{name}\n({size_unit})" for name in ("KV", "bounds", "weights")]
    peaks = [f"{name} peak\n({size_unit})" for name in ("prefill", "decode")]
    columns = [
        f"time per token ({unit})\nmedian [p20–p80]",
        f"p90\n({unit})",
        f"p99\n({unit})",
        slope,
        "tokens/s",
        f"bound\n({unit})",
        "% of\nbandwidth",
        "x dense",
        "ideal x\nvs dense",
        "x flash-\ninfer",
        "TTFT (s)",
        PROMPT,
        *memory,
        *peaks,
        "tokens\nread",
    ]
    table = Table(
        title="End to end: the whole model, one token after the other",
        columns=[*(key.replace("_", " ") for key in keys), "method", *columns],
        text_columns=frozenset({"method"}),
        optional=(
            "tokens\nread",
            slope,
            *peaks,
            memory[1],
            f"p99\n({unit})",
            f"p90\n({unit})",
            memory[2],
            "tokens/s",
            "% of\nbandwidth",
            memory[0],
            PROMPT,
            f"bound\n({unit})",
            "ideal x\nvs dense",
        ),
        keys=len(keys),
        setup=[
            fmt.shared_line(frame, shared),
            fmt.origin_line(frame),
            fmt.runs_line(frame),
            "bound: the time to read the weights and the KV entries at the bandwidth measured in the same rounds. "
            "ideal: the ratio of bytes read. Speed-ups are medians of paired ratios.",
            fmt.counts_line(frame),
            *_paths(frame, keys),
            *_rivals(frame, keys),
        ],
        warnings=fmt.list_warnings(frame, keys),
    )
    for _, row in frame.iterrows():
        missing = fmt.missing(row.get("tpot"))
        spread = fmt.spread(row.get("tpot"), row.get("tpot.p20"), row.get("tpot.p80"), divisor)
        cells = [*(fmt.inputs(key, row[key]) for key in keys), row["label"], fmt.gap(table, row) if missing else spread]
        cells += [fmt.number(row.get(name), divisor) for name in ("tpot.p90", "tpot.p99", "tpot_slope")]
        cells += [fmt.number(row.get("tokens_per_second")), fmt.number(row.get("bound"), divisor)]
        cells.append(_share(table, row))
        cells += _speedup(table, row)
        cells += [fmt.number(row.get("ttft")), _prompt_speed(row)]
        cells += [fmt.number(row.get(name), size) for name in BYTES]
        cells.append(fmt.tokens(row.get("tokens_read")))
        table.rows.append([Cell(str(text)) for text in cells])
    return table


TOO_MUCH = "mismeasured: more than the measured bandwidth of this machine"
ABOVE_IDEAL = "mismeasured: faster than the ratio of bytes to dense allows"


def _prompt_speed(row: Any) -> str:
    """Tokens of all prompts of the batch over the time to the first token."""
    seconds, tokens = row.get("ttft"), row.get("seq_len")
    if fmt.missing(seconds) or fmt.missing(tokens) or seconds <= 0:
        return NONE
    batch = row.get("batch")
    return fmt.number(tokens * (1 if fmt.missing(batch) else batch) / seconds)


def _share(table: Table, row: Any) -> str:
    """Per cent of the measured bandwidth; what cannot be is marked."""
    text = fmt.number(row.get("bandwidth_fraction"), 0.01)
    if fmt.surely_above(row, "bandwidth_fraction", 1):
        text += f" {table.mark(TOO_MUCH)}"
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
    if row["method"] != FIRST and fmt.surely_above(row, "speedup.dense", ideal):
        text += f" {table.mark(ABOVE_IDEAL)}"
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
                        f"{level}x at equal bandwidth"
                    )
    if lines:
        lines.append("The caches of transformers are timed one at a time, not in the same rounds as ours.")
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
        setup=["Here each op is called on its own, so together they may take longer than a step."],
    )
    for _, row in frame.iterrows():
        if fmt.missing(row.get("tpot.staged")):
            continue
        cells = [*(fmt.inputs(key, row[key]) for key in keys), str(row["label"])]
        cells += [fmt.number(row.get(f"tpot.{stage}"), divisor) for stage in (*STAGES, "staged")]
        cells += [
            fmt.number(row.get("tpot.weights.share"), 0.01),
            _weights_share(table, row),
            str(row.get("tpot.linear") or NONE),
        ]
        table.rows.append([Cell(text) for text in cells])
    return table


def _weights_share(table: Table, row: Any) -> str:
    text = fmt.number(row.get("tpot.weights.bandwidth_fraction"), 0.01)
    low = row.get("tpot.weights.bandwidth_fraction_low")
    return f"{text} {table.mark(TOO_MUCH)}" if not fmt.missing(low) and low > 1 else text


def _break_even(frame: pd.DataFrame, keys: list[str]) -> Table:
    """Per method and set-up: from which length on it wins, by bytes and as measured over the lengths of the sweep."""
    others = [key for key in keys if key != "seq_len"]
    table = Table(
        title="Break-even: the text length at which a method starts to win over dense",
        columns=[*(key.replace("_", " ") for key in others), "method", "by bytes", "measured"],
        text_columns=frozenset({"method", "measured"}),
        keys=len(others),
        setup=[
            "measured: where the speed-up crosses 1, interpolated between two lengths of the sweep on a logarithmic "
            "scale. A length at which the interval of the speed-up contains 1 does not count."
        ],
    )
    if "speedup.dense" not in frame or frame.empty:
        return table
    sparse = frame[(frame["method"] != FIRST) & ~frame["fallback"] & frame["speedup.dense"].notna()]
    for values, part in sparse.groupby([*others, "label"], sort=False, dropna=False):
        rows = [row for _, row in part.sort_values("seq_len").iterrows()]
        points = [(row["seq_len"], row["speedup.dense"], *fmt.ends(row, "speedup.dense")) for row in rows]
        by_bytes = next((value for value in fmt.column(part, "break_even") if value is not None), None)
        cells = [fmt.inputs(key, value) for key, value in zip(others, values, strict=False)]
        cells += [str(values[-1]), fmt.tokens(by_bytes), crossing(points)]
        table.rows.append([Cell(text) for text in cells])
    return table


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
