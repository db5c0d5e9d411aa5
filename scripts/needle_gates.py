"""Measure the embedded model ``needle`` against its gates, and write its gates.json and its model card.

    python scripts/needle_gates.py measure [--samples 50] [--long-samples 20] [--threads 2]
    python scripts/needle_gates.py card

``measure`` is nothing but runs of ``questbench accuracy``; gates.json names their commands. ``card`` writes README.md
from gates.json and curve.jsonl.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "questbench" / "models" / "needle"
EVALUATION_SEED = 11
"""Not one that was looked at while the model was trained."""
METRICS = ("score", "perplexity")
"""What gates are set on; a task has one of them."""
YES = {True: "yes", False: "**no**"}


@dataclass(frozen=True)
class Run:
    """One call of ``questbench accuracy``."""

    tasks: str
    length: str
    methods: str
    budgets: str
    long: bool = False

    def command(self, samples: int) -> list[str]:
        """Arguments behind ``questbench``."""
        flags = ["--model", "needle", "--task", self.tasks, "--seq-len", self.length, "--method", self.methods]
        flags += ["--budget", self.budgets, "--samples", str(samples), "--seed", str(EVALUATION_SEED)]
        return ["accuracy", *flags, *(["-M", "h2o.score_from=decode"] if "h2o" in self.methods else [])]


RUNS = (
    Run("passkey,kv", "4k", "dense,quest", "64,256"),
    Run("kv", "4k", "dense,h2o,tova,streaming_llm", "256"),
    Run("niah,vt", "4k", "dense,quest", "64,256"),
    Run("ppl", "4k", "dense,quest", "512"),
    Run("passkey,kv", "16k", "dense,quest", "1k", long=True),
    Run("passkey,kv", "32k", "dense,quest", "1k", long=True),
)


@dataclass(frozen=True)
class Wanted:
    """A gate: the score of a cell, or its share of dense's, within limits."""

    method: str
    task: str
    length: int
    budget: int | None
    least: float = 0.0
    most: float = float("inf")
    of_dense: bool = False
    metric: str = "score"

    @property
    def name(self) -> str:
        """As ``ls models`` shows it."""
        budget = f" {self.budget} of" if self.budget else " at"
        relative = " relative to dense" if self.of_dense else ""
        return f"{self.method} {self.task}{budget} {self.length // 1024}k{relative}"


WANTED = (
    *(Wanted("dense", task, length, None, 0.98) for length in (4096, 16384, 32768) for task in ("passkey", "kv")),
    *(Wanted("dense", task, 4096, None, 0.90) for task in ("niah", "vt")),
    *(
        Wanted("quest", task, 4096, budget, least, of_dense=True)
        for budget, least in ((256, 0.98), (64, 0.95))
        for task in ("passkey", "kv", "niah", "vt")
    ),
    *(Wanted("quest", task, 32768, 1024, 0.95, of_dense=True) for task in ("passkey", "kv")),
    *(Wanted(method, "kv", 4096, 256, most=0.15) for method in ("h2o", "tova", "streaming_llm")),
    Wanted("quest", "ppl", 4096, 512, most=1.01, of_dense=True, metric="perplexity"),
)


def measure(options: argparse.Namespace) -> None:
    """Run everything and write gates.json."""
    found: dict[tuple[str, str, int, int | None], dict[str, Any]] = {}  # by method, task, length, budget
    commands = []
    for run in RUNS:
        arguments = run.command(options.long_samples if run.long else options.samples)
        commands.append(" ".join(["questbench", *arguments]))
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "questbench", *arguments, "--out", folder]
            print(commands[-1], flush=True)
            subprocess.run([*command, "--threads", str(options.threads)], cwd=ROOT, check=True)
            (path,) = Path(folder).glob("*/records.jsonl")
            for line in path.read_text().splitlines():
                record = json.loads(line)
                if record["metric"] not in METRICS:
                    continue
                place = record["params"]
                if record["method"] == "dense" and run.tasks == "kv":
                    continue  # the same samples as in the first run
                found[record["method"], place["task"], place["seq_len"], place["budget"]] = record
    rows = []
    for gate in WANTED:
        record = found[gate.method, gate.task, gate.length, gate.budget]
        measured = record["value"]
        if gate.of_dense:
            dense = found["dense", gate.task, gate.length, None]["value"]
            measured = measured / dense if dense else 0.0
        limits = {"least": gate.least, "most": min(gate.most, 9.99)}
        row = {"name": gate.name, **limits, "measured": round(measured, 4), "samples": record["stats"]["n"]}
        rows.append(row | {"score": record["value"]})
        print(row, flush=True)
    (MODEL / "gates.json").write_text(json.dumps({"commands": commands, "gates": rows}, indent=1) + "\n")


def card(_: argparse.Namespace) -> None:
    """Write README.md."""
    from train_needle import SHARPER

    from questbench.models import _needle

    config = json.loads((MODEL / "config.json").read_text())
    curve = [json.loads(line) for line in (MODEL / "curve.jsonl").read_text().splitlines()]
    every = max(len(curve) // 24, 1)
    shown = curve[::every] + ([curve[-1]] if (len(curve) - 1) % every else [])
    size = sum(path.stat().st_size for path in MODEL.glob("*.safetensors"))
    gates = [
        f"| {gate.name} | {_limit(gate)} | {gate.measured:.1%} | {gate.samples} | {YES[gate.passed]} |"
        for gate in _needle.gates()
    ]
    last = curve[-1]
    facts = {
        "layers": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"],
        "head_dim": config["head_dim"],
        "vocabulary": config["vocab_size"],
        "megabytes": f"{size / 1e6:.1f}",
        "tokens": f"{last['tokens'] / 1e6:.1f}",
        "steps": f"{last['step']:,}",
        "minutes": round(last["seconds"] / 60),
        "sharper": SHARPER,
    }
    template = (Path(__file__).with_name("needle_card.md")).read_text()
    text = template.format(
        **facts,
        gates="\n".join(gates),
        commands="\n".join("    " + command for command in json.loads((MODEL / "gates.json").read_text())["commands"]),
        curve="\n".join(
            f"| {row['step']:,} | {row['tokens'] / 1e6:.1f} | {row['length']:,} | {row['loss']:.4f} "
            f"| {row['right']:.1%} | {row['square']:.3f} |"
            for row in shown
        ),
    )
    (MODEL / "README.md").write_text(text)


def _limit(gate: Any) -> str:
    return f">= {gate.least:.0%}" if gate.least else f"<= {gate.most:.0%}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["measure", "card"])
    parser.add_argument("--samples", type=int, default=50, help="per task at 4k")
    parser.add_argument("--long-samples", type=int, default=20, help="per task at 16k and 32k")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    {"measure": measure, "card": card}[options.command](options)


if __name__ == "__main__":
    main()
