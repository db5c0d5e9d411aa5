"""NaN or infinite logits are a failed cell that names the dtype, in every task and in the harness path."""

from __future__ import annotations

import json
import math

import accuracy_helpers as helpers
import pytest
import torch

from questbench import kernels
from questbench.errors import NotFiniteError
from questbench.experiments._accuracy_batch import Batch
from questbench.experiments._requests import Requests
from questbench.methods.quest import Quest
from questbench.models import hf
from questbench.tasks._base import Task

SMALL = {"seq_lens": [300], "budgets": [64], "samples": 3, "methods": ["dense", "quest"], "model": "random"}


@pytest.fixture
def spoil(monkeypatch):
    """Make the logits of chosen decode steps, or of prefills, what a model that overflows returns."""
    helpers.use(helpers.random_model(), monkeypatch)

    def decode(value, when=lambda batch, row: True):
        original = Batch.feed

        def feed(self, tokens):
            logits = original(self, tokens).clone()
            for row in range(len(logits)):
                if when(self, row):
                    logits[row, 3] = value
            return logits

        monkeypatch.setattr(Batch, "feed", feed)

    def prefill(value, when=lambda ids: True):
        original = hf.forward

        def forward(model, ids, cache, **inputs):
            logits = original(model, ids, cache, **inputs)
            rows = len(ids) if isinstance(ids, torch.Tensor) or not isinstance(ids[0], int) else 1
            return torch.full_like(logits, value) if when(rows) else logits

        monkeypatch.setattr(hf, "forward", forward)

    return decode, prefill


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("task", ["passkey", "ppl", "multiturn", "chain"])
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
    assert all("3 of 3 samples failed. NaN or infinity in the logits of the prompt" in r.reason for r in records)


def test_only_the_cells_fail_whose_samples_spoiled(spoil):
    spoil[0](math.nan, when=lambda batch, row: batch.cache.layers[-1].method.name == "quest" and row == 1)
    records, rows, _ = helpers.run(**SMALL | {"tasks": ["passkey"], "batch": 3})
    by_method = {record.method: record for record in records}
    assert by_method["dense"].status == "ok"
    assert by_method["quest"].status == "failed" and "1 of 3 samples failed" in by_method["quest"].reason
    assert len(rows) == 6 and sum("error" in row for row in rows) == 1
    assert not any(record.metric == "p_holm" for record in records)


def test_a_vocabulary_with_tokens_that_are_never_written_is_fine(spoil):
    spoil[0](-math.inf)
    records, *_ = helpers.run(**SMALL | {"tasks": ["passkey"], "samples": 1})
    assert {record.status for record in records} == {"ok"}


def test_a_task_that_scores_nan_fails(monkeypatch):
    helpers.use(helpers.random_model(), monkeypatch)
    from questbench.tasks._make import make_task

    kind = type(make_task("passkey"))
    monkeypatch.setattr(kind, "score", lambda *_: math.nan)
    records, *_ = helpers.run(**SMALL | {"tasks": ["passkey"], "samples": 2})
    assert {record.status for record in records} == {"failed"}
    assert issubclass(kind, Task) and "which is not a number" in records[0].reason


@pytest.mark.parametrize("where", ["prefill", "decode"])
@pytest.mark.parametrize("ask", ["loglikelihood", "rolling", "generate"])
def test_requests_of_a_harness_end_with_it(spoil, where, ask):
    spoil[where == "prefill"](math.nan)
    loaded = helpers.random_model()
    requests = Requests(loaded, Quest(budget=16), kernels.load("reference"), page_size=4)
    words = " ".join(str(number) for number in range(100, 160))
    asked = {"loglikelihood": [(words, " 700 701")], "rolling": [words], "generate": [(words, ["\n"], 4)]}[ask]
    with pytest.raises(NotFiniteError, match="has left the range of fp32"):
        getattr(requests, ask)(asked)
