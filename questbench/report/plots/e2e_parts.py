"""Where the time of a whole model's step goes: linear layers, the ops of attention, the rest."""

from __future__ import annotations

import functools

from questbench.report import style
from questbench.report.plots import _panels

KIND = "e2e"
TITLE = (
    "Parts of a decode step of the whole model at the longest text; the diamond is the plain step, timed apart and "
    "without clocks in between. A bar too long for its panel is cut and labelled with its length."
)
AXES = ("seq_len", "budget")
PARTS: dict[str, tuple[str, str]] = {"weights": ("#DDDDDD", ""), **style.STAGES, **style.REST}
draw = functools.partial(_panels.stacked, metric="tpot", parts=PARTS, whole="plain step")
