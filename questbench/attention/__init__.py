"""THE forward path of attention: append, select, read, drop. kernel, e2e, accuracy and generate() all run it.

A decode step is ``layer.append(k, v)`` followed by :func:`decode`; a prompt is ``layer.append`` and :func:`prefill`.
"""

from questbench.attention.causal import PREFILL_CHUNK
from questbench.attention.prompt import prefill
from questbench.attention.scoring import Observer, Scoring
from questbench.attention.step import decode

__all__ = ["PREFILL_CHUNK", "Observer", "Scoring", "decode", "prefill"]
