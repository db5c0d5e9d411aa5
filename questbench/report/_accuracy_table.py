"""The tables of ``accuracy``: score with interval, paired difference to dense, and what was really read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from questbench.report import _format as fmt
from questbench.report import _perplexity_table as texts
from questbench.report._accuracy_layout import PER_CENT, Layout, difference, holm_header, p_value, significance
from questbench.report.frame import BASELINES
from questbench.report.render import NONE, Cell, Table

if TYPE_CHECKING:
    import pandas as pd

FEW = 100
"""Fewer samples than this illustrate; they do not measure."""
COUNTS = ("tokens_visible", "tokens_read", "tokens_resident")
ALPHA = 0.05
BEATS_DENSE = (
    "Better than dense beyond chance: reading everything is not the best that this model can do here. "
    "The cell measures the model, not the method."
)
READ_HEADERS = ["tokens\nvisible", "tokens\nread", "tokens\nresident"]


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
    order = frame.assign(_rank=frame["method"].map(rank), _sparse=~frame["method"].isin(BASELINES))
    rest = [key for key in keys if key not in ("seq_len", "budget")]
    # What dense has too (another model, say) divides the table before it divides the methods from dense.
    shared_by_all = [key for key in rest if order.loc[~order["_sparse"], key].notna().all()]
    rest = [key for key in rest if key not in shared_by_all]
    by = [key for key in ("seq_len", *shared_by_all, "_sparse", *rest, "budget", "_rank") if key in order]
    frame = order.sort_values(by, kind="stable").reset_index(drop=True)
    protocol = fmt.column(frame, "protocol")[0]
    layout = texts.layout(frame) if texts.is_text(frame) else _scores(frame)
    table = Table(
        title=f"Accuracy: {frame['task'].iloc[0]}" + (f", protocol {protocol}" if protocol else ""),
        columns=[*(key.replace("_", " ") for key in keys), "method", *layout.columns, *READ_HEADERS],
        text_columns=frozenset({"method"}),
        optional=("tokens\nresident", "tokens\nvisible", *layout.optional),
        keys=len(keys),
        setup=[
            fmt.shared_line(frame, shared),
            fmt.origin_line(frame),
            fmt.runs_line(frame),
            "Dense prefill, then evict: every method starts from the same dense prefill of each sample. "
            + fmt.counts_line(frame),
            *_layers(frame, layout.metric),
            *layout.setup,
        ],
        about=layout.about,
        warnings=fmt.list_warnings(frame, keys),
    )
    for _, row in frame.iterrows():
        table.rows.append([Cell(str(text)) for text in _cells(table, row, keys, layout)])
    if best := _best(frame, keys, layout):
        fmt.embolden(table.rows, ((row, len(keys) + 1) for row in best))
        what = "highest score" if layout.higher_is_better else "lowest perplexity"
        table.setup.append(
            f"Bold: the {what} of the sparse methods at equal inputs; the intervals tell whether it matters."
        )
    return table.without_empty_columns()


def _cells(table: Table, row: Any, keys: list[str], layout: Layout) -> list[str]:
    name = f"{row['label']} (yardstick)" if row["yardstick"] else str(row["label"])
    cells = [NONE if key == "budget" and row["method"] in BASELINES else fmt.inputs(key, row[key]) for key in keys]
    reads = [fmt.tokens(_stat(row, count, layout.metric)) for count in COUNTS]
    if fmt.missing(row.get(layout.metric)):
        shown = [fmt.gap(table, row), *[NONE] * (len(layout.columns) - 1)]
    elif row["fallback"]:
        shown = [f"{fmt.FALLBACK} {table.mark(fmt.FALLBACK_NOTE)}", *[NONE] * (len(layout.columns) - 1)]
        shown[1] = layout.cells(row)[1]
    else:
        shown = layout.cells(row)
        if _beats_dense(row, layout):
            at = next(place for place, header in enumerate(layout.columns) if header.startswith("vs dense"))
            shown[at] += f" {table.mark(BEATS_DENSE)}"
    return [*cells, name, *shown, *reads]


def _beats_dense(row: Any, layout: Layout) -> bool:
    p = significance(row, layout.metric)
    delta = row.get(f"{layout.metric}.delta_vs_dense")
    if row["method"] in BASELINES or fmt.missing(p) or fmt.missing(delta) or p >= ALPHA:
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

    def cells(row: Any) -> list[str]:
        samples = row.get("score.n")
        baseline = row["method"] in BASELINES
        return [
            fmt.spread(row["score"], row.get("score.ci_low"), row.get("score.ci_high"), PER_CENT),
            NONE if fmt.missing(samples) else str(int(samples)),
            NONE if baseline else difference(row, "score.delta_vs_dense", "score.delta_ci"),
            NONE if baseline else p_value(row, "score"),
            NONE if baseline else fmt.number(row.get("score.min_detectable"), PER_CENT),
            NONE if baseline else _lossless(row),
        ]

    setup: list[str] = []
    about = {p_header: p_note, "resolvable\n(points)": "resolvable: the smallest difference that n samples can show."}
    if margins:
        about[f"lossless{within}"] = (
            "lossless: a loss of that many points or more is ruled out (non-inferiority, one-sided 2.5%); "
            f"never claimed with fewer than {FEW} samples."
        )
    counts = [int(value) for value in fmt.column(frame, "score.n") if value is not None]
    if counts and min(counts) < FEW:
        setup.append(f"Fewer than {FEW} samples: differences below the resolvable one mean nothing.")
    dense = [
        value for value, method in zip(fmt.column(frame, "score"), frame["method"], strict=True) if method == "dense"
    ]
    if dense and not any(dense) and None not in dense:
        setup.append("Dense scores 0: this model cannot do the task, so there is nothing to lose. Try another --model.")
    return Layout(
        metric="score",
        columns=[
            "score (%)\nmean [95% CI]",
            "n",
            "vs dense\n(points)",
            p_header,
            "resolvable\n(points)",
            f"lossless{within}",
        ],
        optional=(p_header, "n", "resolvable\n(points)", f"lossless{within}"),
        setup=setup,
        about=about,
        cells=cells,
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


def _stat(row: Any, name: str, metric: str) -> Any:
    """A count, whether it stands beside the metric or is one of its own."""
    value = row.get(f"{metric}.{name}")
    return row.get(name) if fmt.missing(value) else value


def _best(frame: pd.DataFrame, keys: list[str], layout: Layout) -> list[int]:
    """Rows with the best value among rivals of equal inputs; yardsticks, baselines and fallbacks do not compete."""
    metric = layout.metric
    if metric not in frame:
        return []
    fair = frame[~frame["fallback"] & ~frame["yardstick"] & ~frame["method"].isin(BASELINES) & frame[metric].notna()]
    found: list[int] = []
    for _, block in fair.groupby(keys, dropna=False)[metric]:
        # A tie of all is no win.
        if len(block) > 1 and block.max() > block.min():
            best = block.max() if layout.higher_is_better else block.min()
            found += [int(index) for index in block.index[block == best]]
    return found
