"""What ``questbench e2e`` refuses, it refuses before it says what it is about to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_bad_inputs import PREREQUISITE, USAGE, refused

from questbench.models.shapes import SHAPES
from questbench.records import store

VALUES: dict[str, tuple[str, int, str]] = {
    "shape": ("--model shape:llama-9-8b", USAGE, "Unknown shape 'llama-9-8b'. Known: gemma-2-27b"),
    "layers of a shape": ("--model shape:llama-2-7b --layers 33", USAGE, "has 32 layers, not 33"),
    "layers of another model": ("--model constructed --layers 1", USAGE, "Only shape: models"),
    "no sparse layer": ("--layers 2", USAGE, "--dense-layers 2 leaves no sparse layer"),
    "dense layers": ("--dense-layers 24", USAGE, "--dense-layers 24 leaves no sparse layer"),
    "folder": ("--model ./no/such/model", PREREQUISITE, "There is no model folder './no/such/model'"),
    "nothing": ("--model=", PREREQUISITE, "There is no model folder ''"),
    "yardstick": ("--method oracle", USAGE, "yardstick"),
    "graph without CUDA": ("--loop graph", USAGE, "needs a CUDA device"),
    "loop": ("--loop fast", USAGE, "Unknown loop 'fast'"),
    "device": ("--device cuda", PREREQUISITE, "CUDA"),
    "fill": ("--cache-fill zero", USAGE, "Unknown cache fill 'zero'"),
    "cache of transformers": ("--transformers quantised", USAGE, "quantised"),
    "tokens": ("--tokens 8", USAGE, "--tokens takes two lengths"),
    "weights": ("--weights int2", USAGE, "Unknown weights 'int2'"),
    "weights of another dtype": ("--weights int8 --dtype fp32", USAGE, "bf16 only"),
    "budget": ("--method quest --budget 8", USAGE, "below one page of 16"),
    "prompt part": ("--prefill-chunk 0", USAGE, "--prefill-chunk 0"),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("line", "code", "text"), VALUES.values(), ids=VALUES.keys())
def test_refused_before_the_card(
    line: str, code: int, text: str, questbench: Callable[..., Any], tmp_path: Path
) -> None:
    ended = questbench("e2e", *line.split())
    refused(ended, code, text)
    assert "methods" not in ended.err.partition("error: ")[0], "the card was shown"
    assert not store.runs(tmp_path / "results"), "a refused run leaves no folder"


def test_an_unknown_shape_is_told_the_known_ones_and_the_nearest(questbench: Callable[..., Any]) -> None:
    ended = questbench("e2e", "--model", "shape:llama-2-7")
    assert all(name in ended.err.replace("\n", " ") for name in SHAPES)
    assert "Did you mean 'llama-2-7b'?" in ended.err
