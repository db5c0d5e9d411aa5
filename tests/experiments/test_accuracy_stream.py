"""Protocol stream: the losses are the model's own, sparse steps are counted, only what lies behind budgets counts."""

from __future__ import annotations

import math

import accuracy_helpers as helpers
import pytest
import torch

from questbench import seeding
from questbench.errors import CellError, UsageError
from questbench.experiments.accuracy.protocol import split_stream
from questbench.tasks._base import Sample
from questbench.tasks._make import make_task

METHODS = ["dense", "quest", "h2o", "tova", "streaming_llm"]
SMALL = {"tasks": ["ppl"], "seq_lens": [512], "budgets": [64], "samples": 2, "methods": METHODS, "model": "random"}


@pytest.fixture(scope="module")
def results():
    with pytest.MonkeyPatch.context() as patch:
        helpers.use(helpers.random_model(), patch)
        return helpers.run(**SMALL)


def row(rows, method, sample=0):
    return next(r for r in rows if r["method"] == method and r["sample"] == f"ppl-{sample:04d}")


def record(records, metric, method, budget):
    return next(r for r in records if (r.metric, r.method, r.params["budget"]) == (metric, method, budget))


def text_of(index: int) -> Sample:
    rng = seeding.generator(0, "ppl", 512, index)
    return make_task("ppl").sample(index, length=512, tokenizer=helpers.random_model().tokenizer, rng=rng)


def test_dense_losses_are_those_of_the_plain_model(results):
    _, rows, _ = results
    loaded = helpers.random_model()
    for index in range(2):
        sample, found = text_of(index), row(rows, "dense", index)
        text = sample.prompt
        ids = torch.tensor([loaded.tokenizer.encode(text)])
        loaded.model.set_attn_implementation("eager")
        with torch.no_grad():
            logits = loaded.model(ids).logits[0].double()
        losses = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
        first = found["prefill_tokens"] + 1  # the first token behind the prefill is every method's and does not count
        assert found["scored_tokens"] == len(losses) + 1 - first
        assert found["nll"] == pytest.approx(float(losses[first - 1 :].sum()), rel=1e-5)
        assert text.encode().endswith(sample.question.encode()[-found["scored_bytes"] :])
        offsets = loaded.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        assert found["scored_bytes"] == len(text[offsets[first][0] :].encode())


def test_counters_prove_that_the_methods_were_active(results):
    _, rows, _ = results
    for found in rows:
        assert found["steps"] == found["scored_tokens"] == found["prompt_tokens"] - found["prefill_tokens"] - 1
        assert not found["dense_fallback"]
        middle = found["prefill_tokens"] + (found["scored_tokens"] + 1) / 2
        if found["method"] == "dense":
            assert found["tokens_read"] == found["tokens_visible"] == pytest.approx(middle)
            continue
        if found["method"] == "quest":
            assert 48 < found["tokens_visible"] <= 64 and found["pages_read"] == 4
            assert found["tokens_resident"] == pytest.approx(middle)
        else:
            assert found["tokens_visible"] == found["tokens_read"] == found["tokens_resident"] == 64
        assert found["nll"] != row(rows, "dense", int(found["sample"][-1]))["nll"], "the method did nothing"


def test_records(results):
    records, rows, units = results
    assert sum(unit.prefills for unit in units) == 2
    for method in METHODS:
        budget = None if method == "dense" else 64
        own = [r for r in rows if r["method"] == method]
        perplexity = record(records, "perplexity", method, budget)
        nll, tokens = sum(r["nll"] for r in own), sum(r["scored_tokens"] for r in own)
        assert perplexity.value == pytest.approx(math.exp(nll / tokens))
        assert perplexity.unit == "perplexity" and perplexity.params["protocol"] == "stream"
        assert perplexity.stats["scored_tokens"] == tokens
        bits = record(records, "bits_per_byte", method, budget)
        assert bits.value == pytest.approx(nll / math.log(2) / sum(r["scored_bytes"] for r in own))
        assert bits.cell() == perplexity.cell()
        if method == "dense":
            assert "p_value" not in perplexity.stats
        else:
            dense = record(records, "perplexity", "dense", None).value
            assert perplexity.stats["delta_vs_dense"] == pytest.approx(perplexity.value - dense)
            assert perplexity.stats["relative_vs_dense"] == pytest.approx(perplexity.value / dense - 1)


def test_windows_and_recalls(results):
    records, rows, _ = results
    for found in rows:
        assert math.fsum(loss for loss, _ in found["windows"]) == pytest.approx(found["nll"])
        assert [count for _, count in found["windows"][:-1]] == [64] * (len(found["windows"]) - 1)
        assert sum(count for _, count in found["windows"]) == found["scored_tokens"]
        assert 0 < found["recall_tokens"] < found["scored_tokens"]
    stats = record(records, "perplexity", "quest", 64).stats
    assert len(stats["by_window"]) == 1, "windows of 256 tokens are reported, and fewer are scored"
    assert stats["by_window"][0] == pytest.approx(record(records, "perplexity", "quest", 64).value)
    assert stats["recall_perplexity"] > 1


def test_two_short_texts_are_too_few_to_call_a_difference(results):
    records, _, _ = results
    found = record(records, "perplexity", "tova", 64)
    assert found.stats["p_value"] is None and found.stats["blocks"] < 6
    assert any("No difference to dense is called" in text and "--samples" in text for text in found.warnings)
    assert not any(r.metric == "p_holm" for r in records)


def test_every_comparison_of_the_run_is_in_the_family(monkeypatch):
    helpers.use(helpers.random_model(), monkeypatch)
    records, _, units = helpers.run(**SMALL | {"samples": 6, "methods": ["quest", "h2o"], "budgets": [32, 64]})
    corrected = [r for r in records if r.metric == "p_holm"]
    assert len(corrected) == 4 and units[-1].key == "all|holm|6"
    for one in corrected:
        p = record(records, "perplexity", one.method, one.params["budget"]).stats["p_value"]
        assert one.stats == {"family": 4, "p_value": p}
        assert p <= one.value <= min(1.0, 4 * p)


def test_rows_of_a_batch_are_what_they_are_alone(results, monkeypatch):
    helpers.use(helpers.random_model(), monkeypatch)
    _, together, units = helpers.run(**SMALL | {"batch": 2, "methods": ["quest", "h2o"]})
    assert [unit.prefills for unit in units] == [1, 1, 0, 0]
    rows = [found for found in results[1] if found["method"] in ("dense", "quest", "h2o")]
    for one, other in zip(rows, together, strict=True):
        assert (one["batch"], other["batch"]) == (1, 2)
        alike = {name: value for name, value in helpers.plain(one).items() if not _is_loss(name)}
        assert alike == {name: value for name, value in helpers.plain(other).items() if not _is_loss(name)}
        assert one["nll"] == pytest.approx(other["nll"], rel=1e-5)


def _is_loss(name: str) -> bool:
    return name in ("nll", "windows", "recall_nll")


def test_a_context_shorter_than_the_largest_budget_is_prefilled_up_to_it(monkeypatch):
    helpers.use(helpers.random_model(), monkeypatch)
    settings = {"tasks": ["ppl:share=0.6"], "methods": ["quest"], "budgets": [64, 224], "samples": 1}
    records, rows, _ = helpers.run(**SMALL | settings)
    assert {found["prefill_tokens"] for found in rows} == {224}
    assert all(found["context_tokens"] < 224 for found in rows)
    found = record(records, "perplexity", "quest", 64)
    assert found.params["counted_behind"] == 224, "other tokens are another cell"
    assert found.stats["tokens_visible"] <= 64


def test_budgets_shorter_than_the_context_change_nothing(results):
    records, *_ = results
    assert "counted_behind" not in record(records, "perplexity", "quest", 64).params
    tokenizer = helpers.random_model().tokenizer
    own, other = (split_stream(text_of(0), tokenizer, behind) for behind in (0, 128))
    assert own == other and len(own.prefill) > 128


def test_budgets_with_nothing_behind_them_are_skipped(monkeypatch):
    helpers.use(helpers.random_model(), monkeypatch)
    records, rows, _ = helpers.run(**SMALL | {"budgets": [64, 600], "samples": 1, "methods": ["quest"]})
    skipped = [r for r in records if r.status == "skipped"]
    assert [(r.method, r.params["budget"], r.metric) for r in skipped] == [("quest", 600, "perplexity")]
    assert "up to the budget every method is dense" in skipped[0].reason
    assert rows[0]["prefill_tokens"] < 600, "a skipped budget decides nothing"


def test_protocols_belong_to_tasks():
    for task, protocol in (("ppl", "stepwise"), ("passkey", "stream")):
        with pytest.raises(UsageError, match=f"{task} has no protocol '{protocol}'"):
            helpers.run(tasks=[task], protocol=protocol)


def test_nothing_left_to_predict():
    sample = Sample("x-0", "one two three", " four five", ("",))
    with pytest.raises(CellError, match="none is left to predict"):
        split_stream(sample, helpers.random_model().tokenizer, 500)
