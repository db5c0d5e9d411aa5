"""Bad input ends with its documented exit code, a message that says what is wrong, and a next step; no traceback."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from questbench.records import environment, store

USAGE, PREREQUISITE, FAILED = 2, 3, 4

VALUES: dict[str, tuple[str, int, str]] = {
    # unknown names
    "verb": ("kernal", USAGE, "Did you mean: questbench kernel"),
    "flag": ("kernel --sequence 4k", USAGE, "--sequence"),
    "method": ("kernel --method dense,qest", USAGE, "Unknown method 'qest'. Known: dense"),
    "method for accuracy": ("accuracy --task passkey --method snap", USAGE, "Unknown method 'snap'"),
    "task": ("accuracy --task pass_key", USAGE, "Did you mean 'passkey'"),
    "task field": ("accuracy --task kv:rows=3", USAGE, "no parameter 'rows'"),
    "task value": ("accuracy --task kv:records=many", USAGE, "kv cannot hold many records"),
    "backend": ("kernel --backend triton", USAGE, "Unknown backend 'triton'"),
    "no backend": ("kernel --backend ", USAGE, "Unknown backend ''"),
    "backend for accuracy": ("accuracy --task passkey --backend triton", USAGE, "Unknown backend 'triton'"),
    "shape": ("kernel --shape llama-9-8b", USAGE, "Unknown shape 'llama-9-8b'"),
    "shape as a model": ("accuracy --task passkey --model shape:llama-9-8b", USAGE, "llama-9-8b"),
    "dtype": ("kernel --dtype int3", USAGE, "Unknown dtype 'int3'"),
    "dtype for accuracy": ("accuracy --task passkey --dtype int3", USAGE, "Unknown dtype 'int3'"),
    "protocol": ("accuracy --task passkey --protocol guess", USAGE, "Unknown protocol 'guess'"),
    "device": ("kernel --device tpu", USAGE, "Unknown device 'tpu'"),
    "cache state": ("kernel --cache lukewarm", USAGE, "lukewarm"),
    "list": ("ls parrots", USAGE, "Known: methods"),
    "plot": ("report --plot pie", USAGE, "Unknown plot 'pie'"),
    "report format": ("report --format docx", USAGE, "Unknown report format 'docx'"),
    "figure of the paper": ("report --compare paper:fig99", USAGE, "no 'fig99'"),
    # impossible values
    "heads that do not divide": ("kernel --heads 32 --kv-heads 5", USAGE, "cannot share the 5 KV heads"),
    "more KV heads than heads": ("kernel --heads 4 --kv-heads 8", USAGE, "cannot share the 8 KV heads"),
    "budget below a page": ("kernel --method quest --budget 8", USAGE, "below one page of 16"),
    "budget below a page, accuracy": ("accuracy --task passkey --method quest --budget 8", USAGE, "below one page"),
    "budget below the sinks": ("kernel --method streaming_llm --budget 4", USAGE, "needs a budget of at least 6"),
    "no budget": ("kernel --budget 0", USAGE, "--budget 0: must be at least 1"),
    "page size": ("kernel --page-size 12", USAGE, "Page size 12 is not one of"),
    "page size for accuracy": ("accuracy --task passkey --page-size 3", USAGE, "Page size 3 is not one of"),
    "more samples than memory": ("accuracy --task passkey --samples 1000000000", USAGE, "1,000,000 samples"),
    "309 digits": (f"kernel --seq-len {'9' * 309}", USAGE, "too large"),
    "309 digits of samples": (f"accuracy --task passkey --samples {'9' * 309}", USAGE, "too large"),
    "seed of 65 bits": ("kernel --seed 18446744073709551616", USAGE, "does not fit into 64 bits"),
    "seed of 65 bits, e2e": ("e2e --seed 18446744073709551616", USAGE, "does not fit into 64 bits"),
    "seed of 65 bits, accuracy": (f"accuracy --task passkey --seed {1 << 64}", USAGE, "does not fit into 64 bits"),
    "heads that the shape's KV heads do not divide": ("kernel --heads 7", USAGE, "the 8 KV heads of llama-3.1-8b"),
    "time limit": ("e2e --time-limit soon", USAGE, "'soon' is not a duration for --time-limit"),
    "compile limit": ("kernel --compile-limit -1", USAGE, "--compile-limit -1"),
    "no samples": ("accuracy --task passkey --samples 0", USAGE, "--samples 0"),
    "negative samples": ("accuracy --task passkey --samples -5", USAGE, "'-5' is not a value for --samples"),
    "no task": ("accuracy", USAGE, "--task"),
    "empty task": ("accuracy --task ,", USAGE, "--task names nothing"),
    "negative length": ("kernel --seq-len -4k", USAGE, "'-4k' is not a value for --seq-len"),
    "zero length": ("kernel --seq-len 0", USAGE, "--seq-len 0: must be at least 1"),
    "garbage length": ("kernel --seq-len long", USAGE, "'long' is not a value for --seq-len"),
    "part of a token": ("kernel --seq-len 0.3k", USAGE, "not whole"),
    "empty sweep": ("kernel --seq-len ,,", USAGE, "--seq-len names nothing"),
    "too short for the task": ("accuracy --task passkey --seq-len 8 --samples 1", USAGE, "8"),
    "no heads": ("kernel --heads 0", USAGE, "--heads 0"),
    "no batch": ("kernel --batch 0", USAGE, "--batch 0"),
    "no threads": ("kernel --threads 0", USAGE, "--threads 0"),
    "too many threads": ("kernel --threads 100000", USAGE, "--threads 100000"),
    "no rounds": ("kernel --rounds 0", USAGE, "--rounds 0"),
    "no time": ("kernel --max-seconds 0", USAGE, "--max-seconds 0"),
    "time that is no number": ("kernel --max-seconds nan", USAGE, "--max-seconds nan"),
    "seed": ("kernel --seed lucky", USAGE, "--seed"),
    "odd head size": ("kernel --head-dim 7", USAGE, "7"),
    "negative dense layers": ("accuracy --task passkey --dense-layers -1", USAGE, "'-1' is not a value"),
    "no sparse layer left": ("accuracy --task passkey --dense-layers 99 --samples 1", USAGE, "sparse"),
    "yardstick in kernel": ("kernel --method dense,oracle", USAGE, "yardstick"),
    # fields of methods
    "field without value": ("kernel -M quest.variant", USAGE, "is not name=value"),
    "unknown field": ("kernel -M colour=red", USAGE, "No method of this run has a field 'colour'"),
    "unknown field of a method": ("kernel -M quest.colour=red", USAGE, "quest: group_merge, select_by, variant"),
    "field of an absent method": ("kernel --method quest -M h2o.score_from=decode", USAGE, "not part of this run"),
    "value of a field": ("kernel -M quest.variant=other", USAGE, "takes kernel, eval"),
    "number of a field": ("kernel -M streaming_llm.sinks=few", USAGE, "takes a number"),
    "negative number of a field": ("kernel -M streaming_llm.sinks=-1", USAGE, "must not be negative"),
    "field twice": ("kernel -M sinks=1 -M sinks=2", USAGE, "given twice"),
    # what is not there
    "no GPU": ("kernel --device cuda", PREREQUISITE, "CUDA"),
    "no such model": ("accuracy --task passkey --model ./no/such/model", PREREQUISITE, "no/such/model"),
    "hub model while offline": ("accuracy --task passkey --model someone/something", PREREQUISITE, "--online"),
    "no run": ("report", PREREQUISITE, "There is no run"),
    "no such run": ("report results/none", PREREQUISITE, "does not exist"),
    "no such baseline": ("report --compare results/none", PREREQUISITE, "does not exist"),
    "resume nothing": ("kernel --resume results/none", PREREQUISITE, "no run folder"),
    "resume nothing, accuracy": ("accuracy --resume results/none", PREREQUISITE, "no run folder"),
}


def refused(ended: Any, code: int, text: str) -> None:
    shown = ended.out + ended.err
    assert ended.code == code, shown
    assert text in ended.err
    lines = ended.err.splitlines()
    assert any(line.startswith("error: ") for line in lines), ended.err
    assert any(line.startswith("next:  ") and len(line) > 12 for line in lines), ended.err
    assert "Traceback" not in shown
    assert "bug" not in shown


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("line", "code", "text"), VALUES.values(), ids=VALUES.keys())
def test_bad_value(line: str, code: int, text: str, questbench: Callable[..., Any], tmp_path: Path) -> None:
    refused(questbench(*line.split(" ")), code, text)
    assert not store.runs(tmp_path / "results"), "a refused run leaves no folder"


# ---- folders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of ``kernel --seq-len 4k`` that has not measured anything yet."""
    from dataclasses import asdict

    from questbench.experiments.kernel import KernelConfig

    config = asdict(KernelConfig(seq_lens=[4096], backend="reference"))
    with store.create_run(
        tmp_path / "results", "kernel", ["questbench", "kernel"], config, environment.collect()
    ) as run:
        return run.path


def test_results_below_a_file(questbench: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(questbench("kernel", "--out", "file/results"), PREREQUISITE, "Cannot write to 'file/results'")


def test_report_below_a_file(questbench: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(questbench("report", "--compare", "paper", "--to", "file/report"), PREREQUISITE, "Cannot write to")


def write_records(run: Path, data: bytes) -> None:
    (run / "cells.jsonl").unlink()  # without the journal every line counts
    (run / "records.jsonl").write_bytes(data)


def test_run_without_results(questbench: Callable[..., Any], run: Path) -> None:
    refused(questbench("report", run), PREREQUISITE, "no results")


def test_corrupt_record(questbench: Callable[..., Any], run: Path) -> None:
    write_records(run, b'{"this is": "no record"}\n')
    refused(questbench("report", run), PREREQUISITE, "records.jsonl, line 1")


def test_garbage_records(questbench: Callable[..., Any], run: Path) -> None:
    write_records(run, b"\x00\xff garbage\n\n\xfe\n")
    refused(questbench("report", run), PREREQUISITE, "records.jsonl, line 1")


def test_newer_records(questbench: Callable[..., Any], run: Path) -> None:
    write_records(run, b'{"schema": 999}\n')
    refused(questbench("report", run), PREREQUISITE, "schema 999 is newer")


def test_corrupt_manifest(questbench: Callable[..., Any], run: Path) -> None:
    (run / "run.json").write_text('{"run": ')
    refused(questbench("report", run), PREREQUISITE, "run.json, line 1: it is no JSON")
    refused(questbench("kernel", "--resume", run), PREREQUISITE, "run.json, line 1: it is no JSON")


def test_wrong_runs_cost_the_others_nothing(questbench: Callable[..., Any], tmp_path: Path) -> None:
    from questbench.records.schema import ResultRecord

    results, paths = tmp_path / "results", []
    for _ in range(4):
        with store.create_run(results, "kernel", ["questbench"], {}, {"machine": "one"}) as writer:
            head = ("", "kernel", "ok", "dense", {}, "cpu", {"seq_len": 4096, "stage": "total"})
            writer.write([ResultRecord(*head, "latency", "s", 1e-3)])
            writer.finish()
        paths.append(writer.path)
    (paths[0] / "run.json").write_text("[" * 100_000)
    (paths[1] / "records.jsonl").unlink()
    os.mkfifo(paths[1] / "records.jsonl")
    record = json.loads((paths[2] / "records.jsonl").read_text())
    write_records(paths[2], json.dumps({**record, "value": "fast"}).encode() + b"\n")
    ended = questbench("report", "--no-plots", "--out", results)
    assert ended.code == 0, ended.err
    assert "dense" in ended.out
    for path, why in ((paths[0], "run.json"), (paths[1], "not a plain file"), (paths[2], "line 1: field 'value'")):
        assert any(path.name in line and why in line for line in ended.err.splitlines()), (why, ended.err)


def test_resume_a_foreign_folder(questbench: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    refused(questbench("kernel", "--resume", "pictures"), PREREQUISITE, "is not a run")


def test_resume_with_the_wrong_verb(questbench: Callable[..., Any], run: Path) -> None:
    refused(questbench("accuracy", "--resume", run), USAGE, "is a run of 'kernel'")


def test_resume_with_another_configuration(questbench: Callable[..., Any], run: Path) -> None:
    ended = questbench("kernel", "--resume", run, "--budget", "1k")
    refused(ended, USAGE, "budgets: [2048] then, [1024] now")


def test_resume_of_another_version(questbench: Callable[..., Any], run: Path) -> None:
    manifest = json.loads((run / "run.json").read_text())
    manifest["config"] = {"lengths": [4096]}
    (run / "run.json").write_text(json.dumps(manifest))
    refused(questbench("kernel", "--resume", run), PREREQUISITE, "another version of questbench")


def test_resume_while_another_process_writes(questbench: Callable[..., Any], run: Path) -> None:
    from questbench.records import journal

    with journal.lock(run):
        refused(questbench("kernel", "--resume", run), PREREQUISITE, "Another process")


# ---- models -------------------------------------------------------------------------------------------------------

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 64,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a configuration and nothing else."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def score(questbench: Callable[..., Any], model: Path) -> Any:
    return questbench("accuracy", "--task", "passkey", "--samples", "1", "--seq-len", "256", "--model", model)


def test_empty_model_folder(questbench: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(score(questbench, tmp_path / "empty"), PREREQUISITE, "config.json")


def test_model_folder_that_is_a_file(questbench: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("weights")
    refused(score(questbench, tmp_path / "weights"), PREREQUISITE, "weights")


def test_corrupt_model_configuration(questbench: Callable[..., Any], model: Path) -> None:
    (model / "config.json").write_text("{")
    refused(score(questbench, model), PREREQUISITE, "config.json")


def test_unknown_architecture(questbench: Callable[..., Any], model: Path) -> None:
    (model / "config.json").write_text(json.dumps({**LLAMA, "model_type": "perceptron"}))
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    refused(score(questbench, model), PREREQUISITE, "perceptron")


def test_model_without_weights(questbench: Callable[..., Any], model: Path) -> None:
    refused(score(questbench, model), PREREQUISITE, "safetensors")


def test_model_with_pickled_weights_only(questbench: Callable[..., Any], model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    refused(score(questbench, model), PREREQUISITE, "safetensors")


def test_corrupt_weights(questbench: Callable[..., Any], model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"not a tensor in sight")
    refused(score(questbench, model), PREREQUISITE, "model.safetensors")


def test_model_without_tokenizer(questbench: Callable[..., Any], model: Path) -> None:
    save_tiny(model)
    refused(score(questbench, model), PREREQUISITE, "tokenizer")


def test_weights_that_are_not_numbers(questbench: Callable[..., Any], model: Path) -> None:
    save_tiny(model, spoil=float("nan"))
    refused(score(questbench, model), PREREQUISITE, "NaN")


def test_weights_of_another_shape(model: Path, tmp_path: Path) -> None:
    save_tiny(model)
    (model / "config.json").write_text(json.dumps({**LLAMA, "intermediate_size": 32}))
    ended = score(lambda *words: process(tmp_path, *words), model)
    refused(ended, PREREQUISITE, "of the wrong shape, such as")
    assert "above report" not in ended.err


def test_weights_that_are_missing(model: Path, tmp_path: Path) -> None:
    save_tiny(model)
    (model / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 3}))
    # A process of its own: transformers logs to the stderr that it found when it was imported.
    refused(score(lambda *words: process(tmp_path, *words), model), PREREQUISITE, "incomplete")


def save_tiny(folder: Path, spoil: float | None = None) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**{name: LLAMA[name] for name in LLAMA if name != "architectures"}))
    if spoil is not None:
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3, 4] = spoil
    model.save_pretrained(folder)


# ---- machine ------------------------------------------------------------------------------------------------------


def process(tmp_path: Path, *arguments: object, **settings: str) -> Any:
    """A command in a process of its own, with other environment variables."""
    command = [sys.executable, "-m", "questbench", *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if name not in ("CXX", "QUESTBENCH_DEBUG")}
    done = subprocess.run(command, env=kept | settings, cwd=tmp_path, capture_output=True, text=True, check=False)

    class Ended:
        code, out, err = done.returncode, done.stdout, done.stderr

    return Ended


def bare(tmp_path: Path, *arguments: str) -> Any:
    """A command where no compiler is on PATH and nothing is in the cache."""
    return process(tmp_path, *arguments, PATH="", QUESTBENCH_CACHE=str(tmp_path / "cache"))


@pytest.mark.parametrize("verb", ["build", "kernel --seq-len 4k", "accuracy --task passkey --samples 1"])
def test_no_compiler(verb: str, tmp_path: Path) -> None:
    refused(bare(tmp_path, *verb.split()), PREREQUISITE, "compiler")


def test_doctor_without_compiler(tmp_path: Path) -> None:
    ended = bare(tmp_path, "doctor")
    assert ended.code == 0, ended.err
    assert "Install g++" in ended.out


def test_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = process(tmp_path, "build", QUESTBENCH_CACHE=str(tmp_path / "file" / "cache"))
    refused(ended, PREREQUISITE, "QUESTBENCH_CACHE")


def test_compiler_that_fails(tmp_path: Path) -> None:
    (tmp_path / "cxx").write_text("#!/bin/sh\necho 'no such chip' >&2\nexit 1\n")
    (tmp_path / "cxx").chmod(0o755)
    ended = process(tmp_path, "build", CXX=str(tmp_path / "cxx"), QUESTBENCH_CACHE=str(tmp_path / "cache"))
    refused(ended, PREREQUISITE, "no such chip")


def test_unknown_instruction_set(tmp_path: Path) -> None:
    refused(process(tmp_path, "build", QUESTBENCH_ISA="z80"), USAGE, "QUESTBENCH_ISA=z80")


@pytest.mark.parametrize("verb", ["build", "kernel --seq-len 4k"])
def test_unknown_alternative_of_the_kernels(verb: str, tmp_path: Path) -> None:
    ended = process(tmp_path, *verb.split(), QUESTBENCH_CHOICE="order=sideways")
    refused(ended, USAGE, "'order=sideways' is not known")
    assert "order=together|apart" in ended.err and not (tmp_path / "results").exists()
