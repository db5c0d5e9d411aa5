"""What a run writes: one ResultRecord per measured value, one RunManifest per run.

Schema history:
    1  first version.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from questbench.records import fields
from questbench.records.fields import SCHEMA_VERSION, Fidelity, Kind, Status

__all__ = ["SCHEMA_VERSION", "Fidelity", "Kind", "ResultRecord", "RunManifest", "Status", "jsonable"]


@dataclasses.dataclass(frozen=True)
class ResultRecord:
    """One metric of one cell. A cell is what ``params``, ``method``, ``method_args``, ``backend`` and ``seed`` name."""

    run: str
    """Name of the run folder."""
    kind: Kind
    """The experiment."""
    status: Status
    """``skipped`` and ``failed`` records have a ``reason`` and no value."""
    method: str
    """Registered name of the method or of the baseline."""
    method_args: dict[str, Any]
    """Every field of the method, defaults included, effective values (budget floored to whole pages)."""
    backend: str
    """Registered name of the backend; of a baseline, its library."""
    params: dict[str, Any]
    """Inputs only; they identify the cell."""
    metric: str
    """What was measured: latency, speedup, score, ..."""
    unit: str
    """``s``, ``x``, ``B``, ``fraction``, ``tokens``; latency is always in seconds."""
    value: float | None
    """The headline number: the median of ``samples``, or the mean score."""
    reason: str | None = None
    """Why there is no value."""
    fidelity: Fidelity = "measured"
    """``modelled`` numbers come from arithmetic, not from a clock or a count."""
    samples: list[float] = dataclasses.field(default_factory=list)
    """Raw samples, in the order in which they were taken."""
    stats: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Derived numbers: p20, p80, n, ci_low, ci_high, tokens_visible, ..."""
    warnings: list[str] = dataclasses.field(default_factory=list)
    """Why the number may not be trusted, one sentence each."""
    seed: int = 0
    """Seed of the run."""
    schema: int = SCHEMA_VERSION
    """Version of this schema."""

    def to_json(self) -> str:
        """One line of strict JSON (NaN and infinities become null); what ``--json`` prints and the store keeps."""
        return json.dumps(jsonable(dataclasses.asdict(self)), allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ResultRecord:
        """The record of a parsed JSON line.

        Raises:
            ValueError: a field is missing, unknown or of the wrong type, or the schema is newer than this version; the
                message names the field.
        """
        fields.check_record(data, _names(cls), _names(cls, required=True))
        return cls(**data)

    def cell(self) -> str:
        """Identity of the cell this record belongs to, whatever its metric: the key that resume and report use."""
        identity = [self.kind, self.method, self.method_args, self.backend, self.params, self.seed]
        return json.dumps(jsonable(identity), sort_keys=True, separators=(",", ":"))


@dataclasses.dataclass
class RunManifest:
    """``run.json``: everything about a run that is not a result."""

    run: str
    """Name of the run folder."""
    kind: Kind
    """The experiment."""
    argv: list[str]
    """The command line."""
    config: dict[str, Any]
    """The resolved configuration, defaults included."""
    environment: dict[str, Any]
    """Machine, packages, commit and dirty flag; see ``records/environment.py``."""
    start: str
    """UTC time, ISO 8601."""
    end: str | None = None
    """UTC time; ``None`` while the run goes on or if it was killed."""
    prefills: int | None = None
    """Prefills made (accuracy); one per sample, protocol and way to read the prompt."""
    exit_code: int | None = None
    """How the run ended."""
    inputs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What was read besides: SHA-256 of the model's and the data's files, and the chat template."""
    schema: int = SCHEMA_VERSION
    """Version of this schema."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunManifest:
        """The manifest of a parsed ``run.json``.

        Raises:
            ValueError: as for a record.
        """
        fields.check_manifest(data, _names(cls), _names(cls, required=True))
        return cls(**data)


def _names(kind: type[Any], *, required: bool = False) -> list[str]:
    """Fields of a class, or those without a default."""
    missing = dataclasses.MISSING
    return [
        field.name
        for field in dataclasses.fields(kind)
        if not required or (field.default is missing and field.default_factory is missing)
    ]


def jsonable(value: Any) -> Any:
    """The same value for strict JSON: NaN and infinities become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value
