"""Condense run folders into one file for results/published/: what ran where, and every record without its raw samples.

python scripts/publish_runs.py --what "..." --out results/published/cpu_kernel.json RUN [RUN ...]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from questbench.records import store

KEPT = ("p20", "p80", "p90", "p99", "n", "ci_low", "ci_high", "achieved", "bandwidth", "tokens_read", "ideal")
ANSWERS = (
    *("hits", "losses", "gains", "delta_vs_dense", "delta_ci_low", "delta_ci_high", "p_value", "lossless"),
    *("by_depth", "needle_read", "tokens_visible", "tokens_resident", "prompt_tokens", "dense_fallback"),
    *("sparse_layers", "layers", "scored_tokens", "block_tokens", "blocks"),
)
"""Of accuracy: what was answered, against dense on the same samples, and what was read for it."""
NAMES = ("path", "path_of_attention", "left_out", "probe_bandwidth", "others", "trial")
"""Which way a baseline took, how it was chosen, and what the machine did meanwhile."""


def condensed(run: Path) -> dict[str, Any]:
    """Command, machine, common parameters and records of one run folder."""
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    rows = [dataclasses.asdict(record) for record in store.newest_per_cell(store.load([run]))]
    common = dict(rows[0]["params"])
    for row in rows:
        common = {key: value for key, value in common.items() if row["params"].get(key) == value}
    environment = manifest["environment"]
    again = [
        {"command": _command(one["argv"]), "start": one["time"], "commit": one["git"]["commit"]}
        for one in environment.get("resumed", [])
    ]
    return {
        "command": _command(manifest["argv"]),
        **({"resumed": again} if again else {}),
        "start": manifest["start"],
        "commit": environment["git"]["commit"],
        "dirty": environment["git"]["dirty"],
        "machine": environment["cpu"],
        "gpus": environment["gpus"],
        **({"inputs": manifest["inputs"]} if manifest.get("inputs") else {}),
        "packages": environment["packages"],
        "load": environment["load"],
        "params": common,
        "records": [_record(row, common) for row in rows],
    }


def _command(argv: list[str]) -> str:
    """A command line without the folders of the machine that it ran on."""
    argv = list(argv)
    if "--out" in argv:
        del argv[argv.index("--out") : argv.index("--out") + 2]
    return shlex.join(_without_folder(argument) for argument in argv)


def _without_folder(argument: str) -> str:
    """``/home/me/books`` -> ``books``, ``longbench=/data/longbench`` -> ``longbench=longbench``."""
    name, sign, path = argument.rpartition("=")
    return f"{name}{sign}{Path(path).name}" if Path(path).is_absolute() else argument


def _record(row: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in row["params"].items() if key not in common}
    kept = {key: row["stats"][key] for key in (*KEPT, *ANSWERS, *NAMES) if key in (row["stats"] or {})}
    head = {key: row[key] for key in ("method", "metric", "unit", "value")}
    extra = {} if row["status"] == "ok" else {"status": row["status"], "reason": row["reason"]}
    warnings = {"warnings": row["warnings"]} if row["warnings"] else {}
    return {**head, **own, **kept, **extra, **warnings}


def written(what: str, runs: list[dict[str, Any]]) -> str:
    """The file's text, a line for each record."""
    bodies = []
    for run in runs:
        records = ",\n".join(json.dumps(record) for record in run["records"])
        body = json.dumps({**run, "records": None}, indent=1)
        bodies.append(body.replace('"records": null', f'"records": [\n{records}\n]'))
    return f'{{"what": {json.dumps(what)}, "runs": [\n' + ",\n".join(bodies) + "\n]}\n"


def main() -> None:
    """Write the file and say how much went into it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--what", required=True, help="what was measured, and what to know of the machine")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    runs = [condensed(run) for run in options.runs]
    options.out.write_text(written(options.what, runs), encoding="utf-8")
    print(f"{options.out}: {len(runs)} runs, {sum(len(run['records']) for run in runs)} records")


if __name__ == "__main__":
    main()
