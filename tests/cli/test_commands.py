"""The three commands that users type, for real and small: kernel, accuracy, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from questbench.records import store


def test_kernel_accuracy_report(questbench: Callable[..., Any], tmp_path: Path) -> None:
    line = "kernel --seq-len 512 --budget 64 --rounds 3 --max-seconds 1 --compile-limit 0 --json"
    kernel = questbench(*line.split(), *"--heads 4 --kv-heads 2 --head-dim 64".split(), "--out", tmp_path)
    assert kernel.code == 0, kernel.err
    records = [json.loads(text) for text in kernel.out.splitlines()]
    assert {record["method"] for record in records} >= {"dense", "quest", "h2o", "tova", "streaming_llm", "torch"}
    left_out = [record for record in records if record["status"] != "ok"]
    assert [record["params"]["stage"] for record in left_out] == ["way: flex_attention"]
    assert "--compile-limit is 0" in left_out[0]["reason"]

    accuracy = questbench(*"accuracy --task passkey --seq-len 512 --budget 64 --samples 2".split(), "--out", tmp_path)
    assert accuracy.code == 0, accuracy.err
    assert "Accuracy: passkey" in accuracy.out
    run = store.runs(tmp_path)[-1]
    assert store.load_manifest(run).prefills == 2

    again = questbench("accuracy", "--resume", run)
    assert again.code == 0, again.err
    assert store.load_manifest(run).prefills == 2
    more = questbench("accuracy", "--resume", run, "--samples", "3")
    assert more.code == 0, more.err
    manifest = store.load_manifest(run)
    assert manifest.prefills == 3 and manifest.config["samples"] == 3
    assert {record.params["samples"] for record in store.newest_per_cell(store.load([run]))} == {3}

    report = questbench("report", "--out", tmp_path, "--compare", "paper")
    assert report.code == 0, report.err
    assert "Accuracy: passkey" in report.out
    assert (tmp_path / "report" / "report.html").is_file()
    assert (tmp_path / "report" / "figures" / "speedup_vs_ideal.csv").is_file()


def test_a_cell_without_memory_is_a_record(questbench: Callable[..., Any], tmp_path: Path) -> None:
    line = "kernel --seq-len 256,1024m --batch 64 --budget 64 --rounds 2 --max-seconds 1 --no-stages --compile-limit 0"
    small = "--heads 1 --kv-heads 1 --head-dim 64 --method quest"
    ended = questbench(*line.split(), *small.split(), "--out", tmp_path)
    assert ended.code == 4, ended.err
    assert "out of memory" in ended.err
    (run,) = store.runs(tmp_path)
    assert {record.status for record in store.load([run])} >= {"ok", "failed"}
