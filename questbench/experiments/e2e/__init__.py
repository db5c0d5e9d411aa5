"""End to end: what a user waits for, prefill and every token after it, with the whole model in the loop.

A cell is one point of the grid; all its methods run over forks of one prompt and are timed in interleaved rounds with a
plain read of memory. Cells that share device, dtype and weights share a loaded model.
"""

from questbench.experiments.e2e.checks import check
from questbench.experiments.e2e.config import Cell, E2EConfig, cells, methods, params
from questbench.experiments.e2e.experiment import card, inputs, run

__all__ = ["Cell", "E2EConfig", "card", "cells", "check", "inputs", "methods", "params", "run"]
