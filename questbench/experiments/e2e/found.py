"""What was measured of one end-to-end cell, before it becomes records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from questbench.baselines._base import Fastest
from questbench.experiments.counting import ReadCounter
from questbench.measure import timer


@dataclass
class Found:
    """What was measured of one cell, by method."""

    timed: Mapping[str, timer.Samples] = field(default_factory=dict)
    """Decode steps, and ``read``: the plain read of memory."""
    probe_bytes: int = 0
    prefills: dict[str, list[float]] = field(default_factory=dict)
    prefill_rise: dict[str, int | None] = field(default_factory=dict)
    decode_rise: dict[str, int | None] = field(default_factory=dict)
    counted: dict[str, ReadCounter] = field(default_factory=dict)
    same_tokens: dict[str, bool] = field(default_factory=dict)
    kv: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Bytes of keys and values, and of bounds, that each method holds."""
    slopes: dict[str, list[float]] = field(default_factory=dict)
    stages: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    baselines: dict[str, Fastest] = field(default_factory=dict)
    """Dense attention of other libraries in the same loop, timed in the same rounds."""
    rivals: dict[str, Fastest] = field(default_factory=dict)
    """Whole steps of other libraries, timed apart; those that do not work with this model say why."""
    apart: dict[str, Mapping[str, timer.Samples]] = field(default_factory=dict)
    """Their rounds: their own step, and ``read``."""
    loops: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How each method's loop ran: path, reason, linear, loop."""
    before: str | None = None
    """A warning about the machine as it was before the run."""
    others: float | None = None
    """Share of the processor that other programs took while steps were timed."""
    late: str | None = None
    """Why something is missing although nothing failed."""
