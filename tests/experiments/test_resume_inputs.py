"""--resume goes on with what the run was started with: weights, tokenizer, chat template and data, by content."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accuracy_helpers as helpers
import pytest
from safetensors.torch import load_file, save_file

from questbench.errors import UsageError
from questbench.records import store
from questbench.records.inputs import require_same_inputs

TEMPLATE = "{% for m in messages %}user {{ m.content }} {% endfor %}assistant "
LINE = "accuracy --task longbench:set=passage_count --samples 1 --seq-len 512 --method dense --threads 1 --json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    loaded = helpers.random_model()
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUESTBENCH_CACHE", str(tmp_path / "cache"))
    row = {"input": "", "context": "Paragraph one. " * 40, "answers": ["12"], "length": 80, "all_classes": None}
    (tmp_path / "passage_count.jsonl").write_text(json.dumps(row) + "\n")
    return Path(shutil.copytree(saved, tmp_path / "model"))


def other_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][7] += 0.5
    save_file(weights, model / "model.safetensors", {"format": "pt"})


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights": (other_weights, "The model changed: model.safetensors (was "),
    "tokenizer": (lambda model: (model / "tokenizer.json").open("a").write("\n"), "tokenizer.json"),
    "template": (lambda model: (model / "chat_template.jinja").write_text("x" + TEMPLATE), "The chat template changed"),
    "data": (
        lambda model: (model.parent / "passage_count.jsonl").open("a").write("\n"),
        "The data changed: longbench:set=passage_count at 512: passage_count.jsonl (was ",
    ),
    "a file more": (lambda model: (model / "modeling_own.py").write_text(""), "now has modeling_own.py"),
    "a file less": (lambda model: (model / "generation_config.json").unlink(), "generation_config.json, which is gone"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_run_is_not_resumed_with_other_inputs(what: str, model: Path, questbench: Callable[..., Any]) -> None:
    started = questbench(*LINE.split(), "--model", model, "--data", "passage_count.jsonl", "--out", "results")
    assert started.code == 0, started.err
    (run,) = store.runs(Path("results"))
    assert questbench("accuracy", "--resume", run).code == 0
    change, message = CHANGES[what]
    change(model)
    ended = questbench("accuracy", "--resume", run)
    assert ended.code == 2 and message in " ".join(ended.err.split()), ended.err
    assert "start a new run" in ended.err


def test_a_run_says_what_it_read(model: Path, questbench: Callable[..., Any]) -> None:
    started = questbench(*LINE.split(), "--model", model, "--data", "passage_count.jsonl", "--out", "results")
    assert started.code == 0, started.err
    inputs = store.load_manifest(store.runs(Path("results"))[0]).inputs
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= set(inputs["model"])
    assert all(len(digest) == 64 for part in ("model", "data") for digest in inputs[part].values())
    template = inputs["chat_template"]
    assert template["text"] == TEMPLATE and (template["before"], template["behind"]) == ("user ", " assistant ")
    off = questbench(
        *LINE.split(), "--model", model, "--data", "passage_count.jsonl", "--out", "off", "--chat-template", "off"
    )
    assert off.code == 0 and "chat_template" not in store.load_manifest(store.runs(Path("off"))[0]).inputs


def test_models_made_by_code_have_no_files(questbench: Callable[..., Any], tmp_path: Path) -> None:
    line = "accuracy --task passkey --samples 1 --seq-len 256 --method dense --threads 1 --json"
    assert questbench(*line.split(), "--out", tmp_path).code == 0
    (run,) = store.runs(tmp_path)
    assert store.load_manifest(run).inputs == {}
    assert questbench("accuracy", "--resume", run).code == 0


def test_runs_of_versions_that_kept_no_inputs_are_resumed() -> None:
    now = {"model": {"model.safetensors": "a" * 64}}
    require_same_inputs(Path("run"), {}, now)
    require_same_inputs(Path("run"), now, now)
    with pytest.raises(UsageError, match=r"model\.safetensors \(was aaaaaaaaaaaa, is now bbbbbbbbbbbb\)"):
        require_same_inputs(Path("run"), now, {"model": {"model.safetensors": "b" * 64}})


def test_long_texts_are_not_printed() -> None:
    then, now = ({"chat_template": {"text": word * 50}} for word in ("old\n", "new\n"))
    with pytest.raises(UsageError, match=r"The chat template changed: text\."):
        require_same_inputs(Path("run"), then, now)
