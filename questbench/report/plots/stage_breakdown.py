"""Where the time of a decode step goes: append, score, select, attend, evict, and what stands between them."""

from __future__ import annotations

import functools

from questbench.report import style
from questbench.report.plots import _panels

KIND = "kernel"
TITLE = (
    "Time of each stage of a decode step at the longest text; the diamond is the whole step, which was timed apart "
    "and without clocks between its stages. A bar too long for its panel is cut and labelled with its length."
)
AXES = ("seq_len", "budget")
PARTS = {**style.STAGES, **style.REST}
draw = functools.partial(_panels.stacked, metric="latency", parts=PARTS, whole="whole step")
