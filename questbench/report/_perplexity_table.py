"""The columns of texts that are only read: perplexity, its difference to dense, bits per byte."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from questbench import units
from questbench.report import _format as fmt
from questbench.report._accuracy_layout import PER_CENT, Layout, difference, holm_header, p_value
from questbench.report.frame import BASELINES
from questbench.report.render import NONE

if TYPE_CHECKING:
    import pandas as pd

HUGE = 1e6


def is_text(frame: pd.DataFrame) -> bool:
    """Whether these cells have perplexities rather than scores."""
    return "perplexity" in frame and bool(frame["perplexity"].notna().any())


def layout(frame: pd.DataFrame) -> Layout:
    """The columns of a task of the stream protocol."""
    p_header, p_note = holm_header(frame)
    values = [value for value in fmt.column(frame, "perplexity") if value is not None]
    unknown = "Every perplexity here is above a million: this model cannot read the text. Try another --model."
    return Layout(
        metric="perplexity",
        columns=[
            "perplexity\n[95% CI]",
            "tokens\nscored",
            "texts",
            "vs dense (%)\n[95% CI]",
            p_header,
            "resolvable\n(%)",
            "bits\nper byte",
            "perplexity\nof recalls",
        ],
        optional=(p_header, "texts", "tokens\nscored", "resolvable\n(%)", "perplexity\nof recalls"),
        setup=[
            "Only tokens behind the largest budget count, the same ones for every method. "
            "Intervals: bootstrap of blocks of neighbouring tokens.",
            *([unknown] if min(values) >= HUGE else []),
        ],
        about={
            p_header: f"{p_note} (signs of blocks)",
            "resolvable\n(%)": "resolvable: the smallest difference that so many tokens can show.",
        },
        cells=_cells,
        higher_is_better=False,
    )


def _cells(row: Any) -> list[str]:
    baseline = row["method"] in BASELINES
    return [
        _spread(row["perplexity"], row.get("perplexity.ci_low"), row.get("perplexity.ci_high")),
        fmt.tokens(row.get("perplexity.scored_tokens")),
        fmt.tokens(row.get("perplexity.n")),
        NONE if baseline else difference(row, "perplexity.relative_vs_dense", "perplexity.relative_ci"),
        NONE if baseline else p_value(row, "perplexity"),
        NONE if baseline else fmt.number(row.get("perplexity.min_detectable"), PER_CENT),
        fmt.number(row.get("bits_per_byte")),
        _number(row.get("perplexity.recall_perplexity")),
    ]


def _spread(value: Any, low: Any, high: Any) -> str:
    if fmt.missing(low) or fmt.missing(high) or not math.isfinite(high):
        return _number(value)
    return f"{_number(value)} [{_number(low)}–{_number(high)}]"


def _number(value: Any) -> str:
    """Four figures, since differences of a per cent matter; a power of ten where a model knows nothing of the text."""
    if fmt.missing(value):
        return NONE
    return f"{value:.1e}" if value >= HUGE else units.significant(value, 4)
