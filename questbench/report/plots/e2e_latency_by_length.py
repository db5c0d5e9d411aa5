"""Time per token of the whole model over the length of the text, beside what its bytes take."""

from __future__ import annotations

import functools

from questbench.report.plots import _panels

KIND = "e2e"
TITLE = (
    "Time per token of the whole model: median over text length, bars span the 20th to the 80th percentile. Pale lines "
    "of the same colour: what weights and KV entries take at the measured read bandwidth."
)
AXES = ("seq_len", "budget")
draw = functools.partial(_panels.over_length, metric="tpot", name="time per token", verb="e2e", bound="bound")
