"""The tables of ``accuracy``: score with interval, paired difference to dense, and what was really read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from questbench.report import _format as fmt
from questbench.report.frame import BASELINES
from questbench.report.render import NONE, Cell, Table

if TYPE_CHECKING:
    import pandas as pd

FEW = 100
"""Fewer samples than this illustrate; they do not measure."""
COUNTS = ("tokens_visible", "tokens_read", "tokens_resident")
PER_CENT = 0.01


def build(frame: pd.DataFrame, names: list[str]) -> list[Table]:
    """One table per task and protocol, a row per cell."""
    if "task" not in frame:
        return []
    by = [name for name in ("task", "protocol") if name in frame]
    groups = frame.groupby(by, sort=False, dropna=False)
    return [_table(part.reset_index(drop=True), [name for name in names if name not in by]) for _, part in groups]


def _table(frame: pd.DataFrame, names: list[str]) -> Table:
    keys, shared = fmt.split_inputs(frame, names, always=("seq_len", "budget"))
    # The budget of the text-long methods is nothing to sort by: they lead their block.
    rank = {method: number for number, method in enumerate(dict.fromkeys([*BASELINES, *frame["method"]]))}
    order = frame.assign(_rank=frame["method"].map(rank), _baseline=~frame["method"].isin(BASELINES))
    rest = [key for key in keys if key not in ("seq_len", "budget")]
    by = [key for key in ("seq_len", "_baseline", *rest, "budget", "_rank") if key in order]
    frame = order.sort_values(by, kind="stable").reset_index(drop=True)
    protocol = fmt.column(frame, "protocol")[0]
    table = Table(
        title=f"Accuracy: {frame['task'].iloc[0]}" + (f", protocol {protocol}" if protocol else ""),
        columns=[
            *(key.replace("_", " ") for key in keys),
            "method",
            "score (%)\nmean [95% CI]",
            "n",
            "vs dense\n(points)",
            "p",
            "resolvable\n(points)",
            "tokens\nvisible",
            "tokens\nread",
            "tokens\nresident",
        ],
        text_columns=frozenset({"method"}),
        optional=("tokens\nresident", "tokens\nvisible", "p", "n", "resolvable\n(points)"),
        keys=len(keys),
        setup=[
            fmt.shared_line(frame, shared),
            fmt.origin_line(frame),
            "Dense prefill, then evict: every method starts from the same dense prefill of each sample. "
            + fmt.counts_line(frame),
            "p: paired test against dense on the same samples; resolvable: the smallest difference that n can show.",
        ],
        warnings=fmt.list_warnings(frame, keys),
    )
    counts = [int(value) for value in fmt.column(frame, "score.n") if value is not None]
    if counts and min(counts) < FEW:
        table.setup.append(f"Illustrative, n < {FEW}: differences below the resolvable one mean nothing.")
    for _, row in frame.iterrows():
        table.rows.append([Cell(str(text)) for text in _cells(table, row, keys)])
    fmt.embolden(table.rows, ((row, len(keys) + 1) for row in _best(frame, keys)))
    return table.without_empty_columns()


def _cells(table: Table, row: Any, keys: list[str]) -> list[str]:
    name = f"{row['label']} (yardstick)" if row["yardstick"] else str(row["label"])
    cells = [NONE if key == "budget" and row["method"] in BASELINES else fmt.inputs(key, row[key]) for key in keys]
    reads = [fmt.tokens(value) for value in (_stat(row, count) for count in COUNTS)]
    samples = row.get("score.n")
    size = NONE if fmt.missing(samples) else str(int(samples))
    if fmt.missing(row.get("score")):
        return [*cells, name, fmt.gap(table, row), size, NONE, NONE, NONE, *reads]
    if row["fallback"]:
        return [*cells, name, f"{fmt.FALLBACK} {table.mark(fmt.FALLBACK_NOTE)}", size, NONE, NONE, NONE, *reads]
    score = fmt.spread(row["score"], row.get("score.ci_low"), row.get("score.ci_high"), PER_CENT)
    delta, p = row.get("score.delta_vs_dense"), row.get("score.p_value")
    if row["method"] in BASELINES:
        delta = p = None
    sign = "" if fmt.missing(delta) or delta < 0 else "+"
    return [
        *cells,
        name,
        score,
        size,
        NONE if fmt.missing(delta) else sign + fmt.number(delta, PER_CENT),
        NONE if fmt.missing(p) else ("<0.001" if p < 0.001 else fmt.number(p)),
        NONE if row["method"] in BASELINES else fmt.number(row.get("score.min_detectable"), PER_CENT),
        *reads,
    ]


def _stat(row: Any, name: str) -> Any:
    """A count, whether it stands beside the score or is a metric of its own."""
    value = row.get(f"score.{name}")
    return row.get(name) if fmt.missing(value) else value


def _best(frame: pd.DataFrame, keys: list[str]) -> list[int]:
    """Rows with the highest score among rivals of equal inputs; yardsticks, baselines and fallbacks do not compete."""
    if "score" not in frame:
        return []
    fair = frame[~frame["fallback"] & ~frame["yardstick"] & ~frame["method"].isin(BASELINES) & frame["score"].notna()]
    found: list[int] = []
    for _, block in fair.groupby(keys, dropna=False)["score"]:
        # A tie of all is no win.
        if len(block) > 1 and block.max() > block.min():
            found += [int(index) for index in block.index[block == block.max()]]
    return found
