"""Needle recall: what was read of the evidence, where one needle is enough and where each is a part of the answer."""

from __future__ import annotations

import accuracy_helpers as helpers
import pytest

from questbench.experiments.accuracy.protocol import Prompt, shorten, split
from questbench.experiments.accuracy.rows import _recall
from questbench.experiments.counting import Reads
from questbench.tasks._base import Sample, Task
from questbench.tasks._make import make_task

BUDGET = 32


class Two(Task):
    """An old needle and one right before the question."""

    max_new_tokens = 3
    needed = "all"

    def sample(self, index, *, length, tokenizer, rng):
        """Numbers; the needles are the 21st and the last but one."""
        words = [str(rng.randrange(100, 999)) for _ in range(length // 2)]
        starts = [sum(len(word) + 1 for word in words[:at]) for at in (20, len(words) - 2)]
        spans = tuple((start, start + 3) for start in starts)
        return Sample(f"two-{index}", " ".join(words), " 1", ("x",), needles=spans, needles_needed=self.needed)

    def score(self, sample, completion):
        """Nothing is asked."""
        return 0.0


@pytest.fixture(params=["any", "all"])
def rows(request, monkeypatch):
    """(which needles are needed, rows by method)."""
    helpers.use(helpers.random_model(), monkeypatch)
    monkeypatch.setattr(Two, "needed", request.param)
    monkeypatch.setattr("questbench.experiments.accuracy.config.make_task", lambda *_, **__: Two())
    monkeypatch.setattr("questbench.experiments.accuracy.config.expand", lambda specs, **_: list(specs))
    settings = {"tasks": ["two"], "seq_lens": [300], "budgets": [BUDGET], "samples": 2, "model": "random"}
    _, found, _ = helpers.run(**settings, methods=["dense", "streaming_llm", "quest"])
    return request.param, {method: [r for r in found if r["method"] == method] for method in ("dense", "streaming_llm")}


def test_a_needle_that_was_dropped_is_missed_where_all_are_needed(rows):
    needed, by_method = rows
    for row in by_method["dense"]:
        assert row["needle_read"] == 1 and row["needle_resident_first"] and row["needle_resident_last"]
    for row in by_method["streaming_llm"]:
        # The window holds the newer needle and not the older one.
        assert row["needle_read"] == (1 if needed == "any" else 0.5)
        assert row["needle_resident_first"] is row["needle_resident_last"] is (needed == "any")


def reads(*shares):
    """What two layers read of some needles."""
    return [Reads(9, 1, 1, 9, 1, 0, False, tuple(shares), True, True) for _ in range(2)]


def test_each_of_several_needles_counts_with_its_best_step():
    assert _recall([reads(1.0), reads(0.5)]) == pytest.approx(0.75), "of one needle the mean over the steps"
    assert _recall([reads(1.0, 0.0), reads(0.0, 0.5)]) == pytest.approx(0.75)
    assert _recall([reads(0.0, 0.0), reads(0.0, 0.0)]) == 0
    assert _recall([]) is None
    nothing = [Reads(9, 1, 1, 9, 1, 0, False, None, None, None)]
    assert _recall([nothing, nothing]) is None


@pytest.mark.parametrize(
    ("spec", "needles"),
    [("passkey", 1), ("kv", 1), ("niah_multivalue@prose", 4), ("vt:hops=3", 4), ("chain:steps=5", 5)],
)
def test_needles_of_the_tasks(spec, needles):
    """One group per needle that is needed; in each the tokens of the evidence."""
    import random

    tokenizer, task = helpers.random_model().tokenizer, make_task(spec)
    sample = task.sample(0, length=1024, tokenizer=tokenizer, rng=random.Random(0))
    prompt = split(sample, tokenizer, "stepwise", 100)
    assert len(prompt.needles) == needles
    assert len(prompt.needles[0]) == (2 if spec == "passkey" else 1), "the pass key is said twice"
    texts = {sample.context[first:last] for first, last in sample.needles}
    for mentions in prompt.needles:
        said = tokenizer.decode([prompt.prefill[place] for place in mentions[0]])
        assert any(said.strip() in text or text in said for text in texts)


def test_a_needle_that_is_cut_away_can_be_read_by_nobody():
    prompt = Prompt(tuple(range(100)), (200,), (((1, 2),), ((50, 51),)))
    assert shorten(prompt, 41).needles == (((1, 2),), ())
