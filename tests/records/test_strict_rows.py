"""Rows of samples.jsonl are strict JSON: no bare NaN, and no character that UTF-8 cannot write."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from records_helpers import CONFIG, ENVIRONMENT

from questbench.records import store


@pytest.mark.parametrize("value", [math.nan, math.inf, [0.0, -math.inf], {"deep": math.nan}])
def test_bare_nan_is_refused(tmp_path: Path, value: object) -> None:
    with store.create_run(tmp_path, "accuracy", [], CONFIG, ENVIRONMENT) as writer:
        with pytest.raises(ValueError, match="JSON"):
            writer.write([], key="a", samples=[{"score": value}])
        writer.write([], key="b", samples=[{"score": 1.0}])
    assert [row["score"] for row in store.load_samples(writer.path)] == [1.0]


def test_half_a_pair_of_surrogates_is_kept(tmp_path: Path) -> None:
    with store.create_run(tmp_path, "accuracy", [], CONFIG, ENVIRONMENT) as writer:
        writer.write([], key="a", samples=[{"completion": "a\ud800b"}, {"completion": "grün 段落"}])
    assert [row["completion"] for row in store.load_samples(writer.path)] == ["a\ud800b", "grün 段落"]
    text = (writer.path / "samples.jsonl").read_bytes().decode()
    assert "grün 段落" in text and all(json.loads(line) for line in text.splitlines())
