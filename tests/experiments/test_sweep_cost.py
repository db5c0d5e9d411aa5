"""The script that judges what a sweep costs: its arithmetic, on rows that are made up. No clock."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import sweep_cost


def rows(samples: int = 2, cells: int = 3, fork: float = 0.1) -> list[dict]:
    seconds = {"prefill": 4.0, "decode": 1.0, "fork": fork}
    return [
        {"unit": f"kv|{sample}", "task": "kv", "seq_len": 64, "cell": str(cell), "seconds": seconds}
        for sample in range(samples)
        for cell in range(cells)
    ]


def manifest(seconds: int = 15, prefills: int = 2, **more: object) -> dict:
    times = {"start": "2026-01-01T00:00:00+00:00", "end": f"2026-01-01T00:00:{seconds:02}+00:00"}
    return {**times, "prefills": prefills, "environment": {}, **more}


def test_a_prefill_counts_once_per_sample():
    found = sweep_cost.cost(manifest(), rows())
    assert (found.samples, found.cells, found.prefill, found.decode) == (2, 3, 8.0, 6.0)
    assert found.ratio == pytest.approx(15 / 14) and found.forks == pytest.approx(0.6 / 15)
    assert found.problems() == []


@pytest.mark.parametrize(
    ("changes", "fork", "problem"),
    [
        ({"prefills": 3}, 0.1, "3 prefills for 2 samples"),
        ({"seconds": 17}, 0.1, "wall time 1.214"),
        ({}, 0.2, "forks take 8.0%"),
    ],
)
def test_what_is_too_much_is_named(changes, fork, problem):
    (found,) = sweep_cost.cost(manifest(**changes), rows(fork=fork)).problems()
    assert problem in found


def test_a_resumed_run_has_no_wall_time():
    for changes in ({"environment": {"resumed": [{}]}}, {"end": None}):
        with pytest.raises(SystemExit, match="wall time is not known"):
            sweep_cost.cost(manifest(**changes), rows())


def test_run_json_counts_one_prefill_per_sample(questbench, tmp_path):
    """A sweep of methods and budgets from the command line to run.json."""
    line = "accuracy --task passkey,kv:records=4 --seq-len 300 --samples 2 --batch 2 --threads 1 --budget 32,64,128"
    ended = questbench(*line.split(), "--out", str(tmp_path))
    assert ended.code == 0, ended.err
    (run,) = [path for path in tmp_path.iterdir() if (path / "run.json").is_file()]
    found = json.loads((run / "run.json").read_text())
    logged = [json.loads(text) for text in (run / "samples.jsonl").read_text().splitlines()]
    cost = sweep_cost.cost(found, logged)
    assert found["prefills"] == cost.samples == 4
    assert cost.cells == 2 * (1 + 4 * 3) and len(logged) == 4 * (1 + 4 * 3)
