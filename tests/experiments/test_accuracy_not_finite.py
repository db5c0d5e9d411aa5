"""NaN or infinite logits are a failed cell that names the dtype in every task."""

from __future__ import annotations

import functools
import json
import math

import accuracy_helpers as helpers
import pytest
import torch
from test_accuracy_running import uneven  # noqa: F401 (a fixture)

from questbench.models.static_loop import StaticLoop
from questbench.tasks._base import Task

SMALL = {
    "seq_lens": [300],
    "budgets": [64],
    "samples": 3,
    "methods": ["dense", "quest"],
    "model": "random",
    "backend": "reference",
}


@pytest.fixture
def spoil(monkeypatch):
    """Make the logits of chosen decode steps, or of prefills, what a model that overflows returns."""
    loaded = helpers.random_model()
    helpers.use(loaded, monkeypatch)

    def decode(value, when=lambda layer, row: True):
        original = StaticLoop._forward

        def forward(self):
            logits = original(self).clone()
            for row in range(len(logits)):
                if when(self.cache.layers[-1], row):
                    logits[row, 3] = value
            return logits

        monkeypatch.setattr(StaticLoop, "_forward", forward)

    def prefill(value):
        original = loaded.model.forward

        @functools.wraps(original)
        def forward(*args, **kwargs):
            output = original(*args, **kwargs)
            output.logits = torch.full_like(output.logits, value)
            return output

        monkeypatch.setattr(loaded.model, "forward", forward)

    return decode, prefill


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("task", ["passkey", "ppl", "multiturn", "chain:steps=5:links=5"])
def test_the_cell_fails_and_names_the_dtype(spoil, task, value):
    spoil[0](value)
    length = {"multiturn": 1024, "ppl": 512}.get(task, 300)
    records, rows, _ = helpers.run(**SMALL | {"tasks": [task], "samples": 1, "seq_lens": [length]})
    assert records and {(record.status, record.value) for record in records} == {("failed", None)}
    for record in records:
        assert "NaN or infinity" in record.reason and "fp32" in record.reason
    assert not any("score" in row or "nll" in row for row in rows)
    json.dumps(rows, allow_nan=False)


def test_a_prefill_fails_every_cell_of_its_sample(spoil):
    spoil[1](math.nan)
    records, rows, _ = helpers.run(**SMALL | {"tasks": ["passkey"], "batch": 3})
    assert {record.status for record in records} == {"failed"} and len(rows) == 6
    assert all("3 of 3 samples failed. NaN or infinity in" in r.reason for r in records)


def test_only_the_cells_fail_whose_samples_spoiled(spoil, uneven):  # noqa: F811
    """Samples differ by 17 words: the longest of three passes 300 tokens."""
    settings = SMALL | {"tasks": ["uneven"], "seq_lens": [200], "budgets": [32], "batch": 3}
    longest = sorted(row["prompt_tokens"] for row in helpers.run(**settings)[1] if row["method"] == "dense")
    assert longest[1] + 8 < longest[2]
    spoil[0](math.nan, when=lambda layer, row: layer.method.name == "quest" and layer.store.seen[row] >= longest[2])
    records, rows, _ = helpers.run(**settings)
    by_method = {record.method: record for record in records}
    assert by_method["dense"].status == "ok"
    assert by_method["quest"].status == "failed" and "1 of 3 samples failed" in by_method["quest"].reason
    assert len(rows) == 6 and [row["sample"] for row in rows if "error" in row] == ["uneven-0002"]
    assert not any(record.metric == "p_holm" for record in records)


def test_a_task_that_scores_nan_fails(monkeypatch):
    helpers.use(helpers.random_model(), monkeypatch)
    from questbench.tasks._make import make_task

    kind = type(make_task("passkey"))
    monkeypatch.setattr(kind, "score", lambda *_: math.nan)
    records, *_ = helpers.run(**SMALL | {"tasks": ["passkey"], "samples": 2})
    assert {record.status for record in records} == {"failed"}
    assert issubclass(kind, Task) and "which is not a number" in records[0].reason
