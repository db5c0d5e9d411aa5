"""The trained embedded model: what it is, how it is named, and answers that its sparse reads must not lose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from questbench import seeding
from questbench.errors import PrerequisiteError
from questbench.experiments import accuracy
from questbench.models import _needle
from questbench.models.loading import resolve
from questbench.tasks._make import make_task

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 16 * 2**20


@pytest.fixture(scope="module")
def loaded():
    return resolve("needle", dtype=torch.float32)


# What it is


def test_stock_classes(loaded):
    assert type(loaded.model) is LlamaForCausalLM
    assert isinstance(loaded.tokenizer, PreTrainedTokenizerFast)
    assert (loaded.name, loaded.dense_layers) == ("needle", _needle.DENSE_LAYERS) == ("needle", 1)
    assert loaded.dense_layers < loaded.model.config.num_hidden_layers
    assert loaded.model.model.rotary_emb.inv_freq[-1] == 0
    assert len(loaded.tokenizer) == loaded.model.config.vocab_size


def test_fits_the_repository():
    assert sum(path.stat().st_size for path in _needle.FOLDER.rglob("*") if path.is_file()) <= LIMIT
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in _needle.FOLDER.iterdir()
    }


@pytest.mark.parametrize(
    "text",
    [
        "The pass key is 48213. <|end|>\n key 417086: 529314",
        "VAR ABCDE = VAR FGHIJ\nVARIOUS NASA é中 \t x",
        "",
        "  7  ",
    ],
)
def test_tokenizer_loses_nothing(loaded, text):
    ids = loaded.tokenizer(text)["input_ids"]
    assert ids[0] == loaded.tokenizer.bos_token_id
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_numbers_and_names_have_the_same_tokens_everywhere(loaded):
    alone = loaded.tokenizer.encode(" 417086", add_special_tokens=False)
    assert len(alone) == 2
    within = loaded.tokenizer.encode("key 417086: 529314", add_special_tokens=False)
    assert within[1:3] == alone
    assert len(loaded.tokenizer.encode(" ABCDE", add_special_tokens=False)) == 3


def test_the_trainer_builds_the_same_tokenizer(loaded):
    """What is in the folder comes from the script beside it."""
    code = "import _needle_tokenizer as t; print(t.build_tokenizer().backend_tokenizer.to_str())"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}{os.pathsep}{ROOT}"}
    built = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(built.stdout)["model"]["vocab"] == loaded.tokenizer.get_vocab()


# What it answers


@torch.inference_mode()
@pytest.mark.parametrize("spec", ["passkey", "kv"])
@pytest.mark.parametrize("index", range(3))
def test_dense_answers_by_plain_transformers(loaded, spec, index):
    rng = seeding.generator(0, spec, 2048, index)
    sample = make_task(spec).sample(index, length=2048, tokenizer=loaded.tokenizer, rng=rng)
    ids = loaded.tokenizer(sample.prompt, return_tensors="pt").input_ids
    new = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    text = loaded.tokenizer.decode(new[0, ids.shape[1] :])
    assert make_task(spec).score(sample, text) == 1.0, text
    assert text.endswith("<|end|>")


def test_quest_reads_little_and_answers_where_eviction_does_not():
    config = accuracy.AccuracyConfig(
        tasks=["passkey", "kv"],
        methods=["dense", "quest", "streaming_llm"],
        budgets=[256],
        seq_lens=[2048],
        samples=4,
        model="needle",
        threads=2,
    )
    records = [r for unit in accuracy.run(config) for r in unit.records if r.metric == "score"]
    scores = {(record.params["task"], record.method): record.value for record in records}
    for task in ("passkey", "kv"):
        assert scores[task, "dense"] == 1.0 and scores[task, "quest"] >= 0.75
    assert scores["kv", "streaming_llm"] <= 0.25
    (read,) = [r.stats["tokens_read"] for r in records if r.method == "quest" and r.params["task"] == "kv"]
    assert read <= 256


# What is said of it


def test_gates_are_listed_with_what_was_missed():
    gates = _needle.gates()
    assert len(gates) >= 10 and all(gate.samples >= 3 for gate in gates)
    missed = [gate.name for gate in gates if not gate.passed]
    assert f"{len(gates) - len(missed)} of {len(gates)} gates passed" in _needle.summary()
    card = (_needle.FOLDER / "README.md").read_text()
    assert all(name in _needle.summary() and name in card for name in missed)


def test_a_gate_has_two_limits():
    assert _needle.Gate("dense", 0.98, 9.99, 1.0, 20).passed
    assert not _needle.Gate("dense", 0.98, 9.99, 0.97, 20).passed
    assert not _needle.Gate("eviction", 0.0, 0.15, 0.2, 20).passed


def test_an_installation_without_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(_needle, "FOLDER", tmp_path)
    with pytest.raises(PrerequisiteError, match=r"config\.json"):
        resolve("needle", dtype=torch.float32)
    assert _needle.summary().endswith("not measured")
