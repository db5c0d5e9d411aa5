"""Score over the budget: entries that one query head may see."""

from __future__ import annotations

import functools

from questbench.report.plots import _accuracy

KIND = "accuracy"
TITLE = (
    "Score over budget, all methods on the same samples and, but for those that read prompts for themselves, behind "
    "the same dense prefill. Bars are 95% intervals."
)
AXES = ("task", "seq_len", "budget")
draw = functools.partial(_accuracy.draw, x="budget", x_label="budget (tokens)")
