"""Score over the entries really read, which is what a budget costs."""

from __future__ import annotations

import functools

from questbench.report.plots import _accuracy

KIND = "accuracy"
TITLE = "Score over entries read per KV head and step, counted where they are read; bars are 95% intervals."
AXES = ("task", "seq_len", "budget")
draw = functools.partial(_accuracy.draw, x="tokens_read", x_label="entries read per KV head and step")
