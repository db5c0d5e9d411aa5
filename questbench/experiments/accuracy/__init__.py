"""Accuracy of every method on the same samples: one dense prefill per sample, forked for every cell.

Cells whose method reads prompts for itself get a prefill of their own (``Method.prefill_key``).

    prefill the context dense (collecting the attention mass that any method needs)
    for each cell (method, budget, page size):  fork -> question and answer token by token through attention.decode

Yields one unit per sample, a summary per (task, length) and at last the p values corrected over the whole grid, so that
a killed run loses one batch of samples at most.
"""

from questbench.experiments.accuracy.checks import check
from questbench.experiments.accuracy.config import AccuracyConfig, Cell, Refused, Work, cells, grid
from questbench.experiments.accuracy.experiment import FREE, card, inputs, run

__all__ = ["FREE", "AccuracyConfig", "Cell", "Refused", "Work", "card", "cells", "check", "grid", "inputs", "run"]
