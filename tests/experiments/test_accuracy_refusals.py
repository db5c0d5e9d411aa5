"""What cannot be used is refused before anything is run; what says nothing is marked."""

from __future__ import annotations

import accuracy_helpers as helpers
import pytest

from questbench.errors import UsageError
from questbench.experiments.accuracy import config
from questbench.models import hf
from questbench.tasks._make import make_task


@pytest.fixture
def forwards(monkeypatch):
    """How many forwards were made, on the random model."""
    helpers.use(helpers.random_model(), monkeypatch)
    calls = []
    original = hf.forward
    monkeypatch.setattr(hf, "forward", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    return calls


def books(folder, *counts):
    for number, words in enumerate(counts):
        (folder / f"{number}.txt").write_text("The lake was quiet and the moon was bright. " * (words // 9))
    return {"tasks": ["pg19"], "seq_lens": [300], "model": "random", "data": {"*": str(folder)}}


def test_books_that_are_all_too_short_are_found_before_anything_is_run(forwards, tmp_path):
    with pytest.raises(UsageError, match=r"book 0 of .* has only"):
        helpers.run(**books(tmp_path, 40, 50, 60), methods=["dense"], samples=3)
    assert not forwards


def test_a_sample_that_cannot_be_used_is_counted_and_the_others_are_scored(forwards, tmp_path):
    settings = books(tmp_path, 40, 600, 600) | {"methods": ["dense", "tova"], "budgets": [64], "samples": 3}
    settings |= {"seq_lens": [400]}  # a budget of 64 leaves a window of 256 tokens behind it
    records, rows, units = helpers.run(**settings)
    found = [record for record in records if record.metric == "perplexity"]
    assert [record.status for record in found] == ["ok", "ok"]
    for record in found:
        assert record.stats["n"] == 2 and record.stats["unusable"] == 1
        assert any("1 sample could not be used" in text and "book 0" in text for text in record.warnings)
    failed = [row for row in rows if "unusable" in row]
    assert [row["method"] for row in failed] == ["dense", "tova"] and "book 0" in failed[0]["unusable"]
    assert not {"nll", "score"} & set(failed[0])
    # Resuming does not stumble over it again, and gives the same.
    for kept in (1, 2):
        stored = [row for unit in units[:kept] for row in unit.samples]
        again, *_ = helpers.run(finished={unit.key for unit in units[:kept]}, stored=stored, **settings)
        assert again == records


def test_a_task_that_cannot_fill_the_length_is_found_before_the_others_are_run(forwards):
    with pytest.raises(UsageError, match="kv cannot fill 200 tokens"):
        helpers.run(tasks=["passkey", "kv"], seq_lens=[200], samples=1, methods=["dense"], model="random")
    assert not forwards


def test_what_is_finished_is_not_made_again(forwards, monkeypatch):
    settings = {"tasks": ["passkey", "kv:records=4"], "seq_lens": [300], "samples": 1, "methods": ["dense"]}
    _, rows, units = helpers.run(**settings, model="random")
    made = []
    original = config.make_task

    def watched(spec, *args, **kwargs):
        task = original(spec, *args, **kwargs)
        sample = task.sample
        object.__setattr__(task, "sample", lambda *a, **k: made.append(spec) or sample(*a, **k))
        return task

    monkeypatch.setattr(config, "make_task", watched)
    helpers.run(finished={unit.key for unit in units[:1]}, stored=rows, **settings, model="random")
    assert set(made) == {"kv:records=4"}


def test_a_parameter_without_a_value_is_told_from_an_unknown_one():
    for spec in ("kv:records", "kv:records="):
        with pytest.raises(UsageError, match="'records' of task 'kv' has no value") as caught:
            make_task(spec)
        assert "kv:records=VALUE" in str(caught.value.hint)
    with pytest.raises(UsageError, match="no parameter 'size'"):
        make_task("kv:size=3")


def test_a_task_that_dense_cannot_do_says_so(monkeypatch):
    """Otherwise a row of zeros reads "+0 to dense"."""
    helpers.use(helpers.random_model(), monkeypatch)
    settings = {"tasks": ["passkey"], "seq_lens": [256], "samples": 2, "budgets": [64], "model": "random"}
    records, *_ = helpers.run(**settings, methods=["dense", "quest"])
    scores = [record for record in records if record.metric == "score"]
    assert [record.value for record in scores] == [0.0, 0.0]
    assert all("the comparison means nothing" in " ".join(record.warnings) for record in scores)
    monkeypatch.undo()
    records, *_ = helpers.run(**settings | {"model": "constructed"}, methods=["dense"])
    assert records[0].value == 1.0 and "says nothing" not in " ".join(records[0].warnings)
