"""The trained embedded model: where it lies and what it is known to do. No torch; ``ls models`` reads this too.

``scripts/train_needle.py`` trains it, ``scripts/needle_gates.py`` measures it, and the folder ``needle`` beside this
file is what they leave: a stock ``LlamaForCausalLM`` with its tokenizer, a model card and ``gates.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from questbench.errors import PrerequisiteError

NAME = "needle"
FOLDER = Path(__file__).resolve().parent / NAME
DENSE_LAYERS = 1
"""Default of ``--dense-layers``: layer 0 looks at neighbours only, retrieval sits behind it."""


@dataclass(frozen=True)
class Gate:
    """One requirement that the model was measured against before it was released."""

    name: str
    """What is measured: ``dense kv at 16k``."""
    least: float
    """The lowest share that passes."""
    most: float
    """The highest share that passes."""
    measured: float
    samples: int

    @property
    def passed(self) -> bool:
        """Whether the measured share lies within the limits."""
        return self.least <= self.measured <= self.most


def folder() -> Path:
    """The model's folder.

    Raises:
        PrerequisiteError: this installation has none.
    """
    if not (FOLDER / "config.json").is_file():
        raise PrerequisiteError(
            f"The embedded model '{NAME}' is not part of this installation: {FOLDER} has no config.json.",
            "Install questbench again, or train it: python scripts/train_needle.py train --run RUN",
        )
    return FOLDER


def gates() -> list[Gate]:
    """What the model was measured against, in the order of ``gates.json``; empty if it was not measured."""
    path = FOLDER / "gates.json"
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["gates"]
    return [Gate(row["name"], row["least"], row["most"], row["measured"], row["samples"]) for row in rows]


def summary() -> str:
    """What ``ls models`` says of the weights."""
    found = gates()
    missed = [f"{gate.name} ({gate.measured:.0%})" for gate in found if not gate.passed]
    if not found:
        return "embedded, trained; not measured"
    text = f"embedded, trained; {len(found) - len(missed)} of {len(found)} gates passed"
    return f"{text}; missed: {', '.join(missed)}" if missed else text


def shape() -> dict[str, int]:
    """Layers, heads and context as ``ls models`` lists them; empty if the model is not there."""
    path = FOLDER / "config.json"
    if not path.is_file():
        return {}
    config = json.loads(path.read_text(encoding="utf-8"))
    return {
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"],
        "head_dim": config["head_dim"],
        "context": config["max_position_embeddings"],
    }
