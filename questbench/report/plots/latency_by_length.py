"""Time of one decode step of one layer over the length of the text."""

from __future__ import annotations

import functools

from questbench.report.plots import _panels

KIND = "kernel"
TITLE = "Decode attention of one layer: median time over text length; bars span the 20th to the 80th percentile."
AXES = ("seq_len", "budget")
draw = functools.partial(_panels.over_length, metric="latency", name="latency", verb="kernel")
