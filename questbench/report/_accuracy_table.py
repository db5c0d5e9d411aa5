"""The tables of ``accuracy``: score with interval, paired difference to dense, and what was really read."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from questbench.report import _format as fmt
from questbench.report import _perplexity_table as texts
from questbench.report._accuracy_layout import PER_CENT, Layout, difference, holm_header, p_value, significance
from questbench.report._columns import Column, Shown, begin, fallback, fill, number, rows_of, sparse
from questbench.report.frame import DENSE
from questbench.report.render import NONE, Table

if TYPE_CHECKING:
    import pandas as pd

FEW = 100
"""Fewer samples than this illustrate; they do not measure."""
ALPHA = 0.05
BEATS_DENSE = (
    "Better than dense beyond chance: reading everything is not the best that this model can do here. "
    "The cell measures the model, not the method."
)


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
    order = frame.assign(_rank=fmt.ranks(frame), _sparse=~frame["baseline"])
    rest = [key for key in keys if key not in ("seq_len", "budget")]
    # What dense has too (another model, say) divides the table before it divides the methods from dense.
    shared_by_all = [key for key in rest if order.loc[~order["_sparse"], key].notna().all()]
    rest = [key for key in rest if key not in shared_by_all]
    by = [key for key in ("seq_len", *shared_by_all, "_sparse", *rest, "budget", "_rank") if key in order]
    frame = order.sort_values(by, kind="stable").reset_index(drop=True)
    # Baselines have no budget, whatever stands in their records.
    rows = [{**row, "budget": None} if row["baseline"] else dict(row) for row in rows_of(frame)]
    protocol = fmt.column(frame, "protocol")[0]
    layout = texts.layout(frame) if texts.is_text(frame) else _scores(frame)
    table = begin(
        f"Accuracy: {frame['task'].iloc[0]}" + (f", protocol {protocol}" if protocol else ""),
        frame,
        keys,
        shared,
        f"Dense prefill, then evict: {_prefill(frame, layout.metric)}. {fmt.counts_line(frame)}",
        *_layers(frame, layout.metric),
        *layout.setup,
    )
    columns = [
        *(_guarded(table, layout, place) for place in range(len(layout.columns))),
        Column("tokens\nvisible", _count("tokens_visible", layout.metric), spare=2),
        Column("tokens\nread", _count("tokens_read", layout.metric)),
        Column("tokens\nresident", _count("tokens_resident", layout.metric), spare=1),
    ]
    fill(table, rows, keys, columns, lambda row: f"{row['label']}{' (yardstick)' * bool(row['yardstick'])}")
    if best := _best(frame, keys, layout):
        for row in best:
            headline = table.rows[row][len(keys) + 1]
            table.rows[row][len(keys) + 1] = dataclasses.replace(headline, best=True)
        what = "highest score" if layout.higher_is_better else "lowest perplexity"
        table.setup.append(
            f"Bold: the {what} of the sparse methods at equal inputs; the intervals tell whether it matters."
        )
    return table.without_empty_columns()


def _prefill(frame: pd.DataFrame, metric: str) -> str:
    """Which methods start from the same prefill."""
    own = fmt.column(frame, f"{metric}.own_prefill")
    readers = dict.fromkeys(method for method, reads in zip(frame["method"], own, strict=True) if reads)
    if not readers:
        return "every method starts from the same dense prefill of each sample"
    return (
        f"every method but {', '.join(readers)} starts from the same dense prefill of each sample; these read each "
        "prompt for themselves"
    )


def _guarded(table: Table, layout: Layout, place: int) -> Column:
    """A column of the layout; of rows without a result the first says why, and little else is shown."""
    column = layout.columns[place]

    def shown(row: Any) -> str:
        if fmt.missing(row.get(layout.metric)):
            return fmt.gap(table, row) if place == 0 else NONE
        if row["fallback"] and place != 1:
            return fallback(table) if place == 0 else NONE
        beats = column.header == layout.versus and _beats_dense(row, layout)
        return column.shown(row) + (f" {table.mark(BEATS_DENSE)}" if beats else "")

    return dataclasses.replace(column, shown=shown)


def _beats_dense(row: Any, layout: Layout) -> bool:
    p = significance(row, layout.metric)
    delta = row.get(f"{layout.metric}.delta_vs_dense")
    if row["baseline"] or fmt.missing(p) or fmt.missing(delta) or p >= ALPHA:
        return False
    return bool(delta > 0) is layout.higher_is_better and delta != 0


def _layers(frame: pd.DataFrame, metric: str) -> list[str]:
    """On which layers methods act, of models in which they do not act on all."""
    found = sorted({str(value) for value in fmt.column(frame, f"{metric}.layers") if value is not None})
    return [f"{text[0].upper()}{text[1:]}." for text in found]


def _scores(frame: pd.DataFrame) -> Layout:
    """The columns of tasks with a score."""
    margins = sorted({float(value) for value in fmt.column(frame, "score.lossless_margin") if value is not None})
    within = f"\n({' or '.join(f'{margin * 100:g}' for margin in margins)} points)" if margins else ""
    p_header, p_note = holm_header(frame)
    ruled_out = (
        "lossless: a loss of that many points or more is ruled out (non-inferiority, one-sided 2.5%); "
        f"never claimed with fewer than {FEW} samples."
    )
    resolvable = "resolvable: the smallest difference that n samples can show."

    def score(row: Any) -> str:
        return fmt.spread(row["score"], row.get("score.ci_low"), row.get("score.ci_high"), PER_CENT)

    def samples(row: Any) -> str:
        return NONE if fmt.missing(row.get("score.n")) else str(int(row["score.n"]))

    setup: list[str] = []
    counts = [int(value) for value in fmt.column(frame, "score.n") if value is not None]
    if counts and min(counts) < FEW:
        setup.append(f"Fewer than {FEW} samples: differences below the resolvable one mean nothing.")
    dense = fmt.column(frame.loc[frame["method"] == DENSE], "score")
    if dense and not any(dense) and None not in dense:
        setup.append("Dense scores 0: this model cannot do the task, so there is nothing to lose. Try another --model.")
    versus = "vs dense\n(points)"
    return Layout(
        metric="score",
        columns=[
            Column("score (%)\nmean [95% CI]", score),
            Column("n", samples, spare=4),
            Column(versus, sparse(difference("score.delta_vs_dense", "score.delta_ci"))),
            Column(p_header, sparse(p_value("score")), spare=3, about=p_note),
            Column("resolvable\n(points)", sparse(number("score.min_detectable", PER_CENT)), spare=5, about=resolvable),
            Column(f"lossless{within}", sparse(_lossless), spare=6, about=ruled_out if margins else ""),
        ],
        versus=versus,
        setup=setup,
        higher_is_better=True,
    )


def _lossless(row: Any) -> str:
    """Yes, no, how many samples the answer needs, or why the question makes no sense."""
    if row.get("score.nothing_left_out") is True:
        return "nothing left out"
    claimed, samples, needed = (row.get(f"score.{name}") for name in ("lossless", "n", "lossless_needs"))
    if fmt.missing(claimed) or fmt.missing(samples):
        return NONE
    if claimed:
        return "yes"
    if not fmt.missing(needed) and needed > samples:
        return f"needs {int(needed):,} samples"
    # Records of earlier versions do not say how many are needed.
    return f"n < {FEW}" if samples < FEW and "score.lossless_needs" not in row else "no"


def _count(name: str, metric: str) -> Shown:
    """A count, whether it stands beside the metric or is one of its own."""

    def shown(row: Any) -> str:
        value = row.get(f"{metric}.{name}")
        return fmt.tokens(row.get(name) if fmt.missing(value) else value)

    return shown


def _best(frame: pd.DataFrame, keys: list[str], layout: Layout) -> list[int]:
    """Rows with the best value among rivals of equal inputs; yardsticks, baselines and fallbacks do not compete."""
    metric = layout.metric
    if metric not in frame:
        return []
    fair = frame[~frame["fallback"] & ~frame["yardstick"] & ~frame["baseline"] & frame[metric].notna()]
    found: list[int] = []
    for _, block in fair.groupby(keys, dropna=False)[metric]:
        # A tie of all is no win.
        if len(block) > 1 and block.max() > block.min():
            best = block.max() if layout.higher_is_better else block.min()
            found += [int(index) for index in block.index[block == best]]
    return found
