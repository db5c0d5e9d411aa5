"""The columns of texts that are only read: perplexity, its difference to dense, bits per byte."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from questbench import units
from questbench.report import _format as fmt
from questbench.report._accuracy_layout import PER_CENT, Layout, difference, holm_header, p_value
from questbench.report._columns import Column, number, sparse, tokens
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
    versus, so_many = "vs dense (%)\n[95% CI]", "resolvable: the smallest difference that so many tokens can show."
    return Layout(
        metric="perplexity",
        columns=[
            Column("perplexity\n[95% CI]", _perplexity),
            Column("tokens\nscored", tokens("perplexity.scored_tokens"), spare=5),
            Column("texts", tokens("perplexity.n"), spare=4),
            Column(versus, sparse(difference("perplexity.relative_vs_dense", "perplexity.relative_ci"))),
            Column(p_header, sparse(p_value("perplexity")), spare=3, about=f"{p_note} (signs of blocks)"),
            Column("resolvable\n(%)", sparse(number("perplexity.min_detectable", PER_CENT)), spare=6, about=so_many),
            Column("bits\nper byte", number("bits_per_byte")),
            Column("perplexity\nof recalls", lambda row: _number(row.get("perplexity.recall_perplexity")), spare=7),
        ],
        versus=versus,
        setup=[
            "Only tokens behind the largest budget count, the same ones for every method. "
            "Intervals: bootstrap of blocks of neighbouring tokens.",
            *([unknown] if min(values) >= HUGE else []),
        ],
        higher_is_better=False,
    )


def _perplexity(row: Any) -> str:
    value, low, high = (row.get(name) for name in ("perplexity", "perplexity.ci_low", "perplexity.ci_high"))
    if fmt.missing(low) or fmt.missing(high) or not math.isfinite(high):
        return _number(value)
    return f"{_number(value)} [{_number(low)}–{_number(high)}]"


def _number(value: Any) -> str:
    """Four figures, since differences of a per cent matter; a power of ten where a model knows nothing of the text."""
    if fmt.missing(value):
        return NONE
    return f"{value:.1e}" if value >= HUGE else units.significant(value, 4)
