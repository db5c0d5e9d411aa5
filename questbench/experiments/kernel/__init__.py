"""Attention kernels: one decode step of one layer, every method against dense and torch's best in the same rounds.

A cell is one (length, budget, page size, batch, dtype). Within a cell all methods, the baselines and a plain read of
memory are timed in interleaved rounds, so that ratios are paired and every row shows its distance to the limit.
"""

from questbench.experiments.kernel.checks import check
from questbench.experiments.kernel.config import Cell, KernelConfig, cells, heads, methods, params
from questbench.experiments.kernel.experiment import card, run

__all__ = ["Cell", "KernelConfig", "card", "cells", "check", "heads", "methods", "params", "run"]
