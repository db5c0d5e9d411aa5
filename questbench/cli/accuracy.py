"""``questbench accuracy``: long-context tasks, every method on the same samples, paired against dense."""

from __future__ import annotations

from questbench.cli._run import command
from questbench.experiments import accuracy as experiment

EXAMPLES = (
    "questbench accuracy --task passkey --budget 64,256,1k",
    "questbench accuracy --task kv:records=full --samples 20 --seq-len 8k",
)
ABOUT = """Score every method on the same samples, with a paired test against dense.

The context is prefilled dense, once per sample; then the question and the answer run with the method active.
"""

accuracy = command("accuracy", experiment, experiment.AccuracyConfig, ABOUT)
