"""``questbench kernel``: attention kernels of every method, timed against dense and torch's fastest way."""

from __future__ import annotations

from questbench.cli._run import command
from questbench.experiments import kernel as experiment

EXAMPLES = (
    "questbench kernel --seq-len 8k,32k --budget 1k,2k",
    "questbench kernel --shape llama-2-7b -M quest.group_merge=max --json",
)
ABOUT = """Time one decode step of attention for every method, against dense and torch's fastest way in the same rounds.

Every row shows the bandwidth it reached of what this machine can read, and the speed-up its traffic would allow.
"""

kernel = command("kernel", experiment, experiment.KernelConfig, ABOUT)
