"""``questbench e2e``: prefill and per-token latency of whole models, every method against dense."""

from __future__ import annotations

from questbench.cli._run import command
from questbench.experiments import e2e as experiment

EXAMPLES = (
    "questbench e2e --seq-len 8k,16k,32k --budget 2k --cache-fill random",
    "questbench e2e --model constructed --dtype fp32 --seq-len 2k --budget 256",
)
ABOUT = """Time prefill and decode of a whole model for every method, against dense in the same rounds.

Every row shows the time that its bytes (weights and KV entries) take at this machine's read bandwidth, and the
speed-up over dense that they would allow.
"""

e2e = command("e2e", experiment, experiment.E2EConfig, ABOUT)
