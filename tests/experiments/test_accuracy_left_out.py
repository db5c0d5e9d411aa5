"""What a cell's number says: what was left out of the text, how many samples it needs, whether the model can do it."""

from __future__ import annotations

import itertools

import accuracy_helpers as helpers
import pytest

from questbench.errors import UsageError
from questbench.experiments import accuracy, e2e, kernel
from questbench.experiments.accuracy import AccuracyConfig
from questbench.experiments.accuracy.checks import SAMPLES_MOST
from questbench.experiments.accuracy.records import _floor
from questbench.tasks._make import make_task

SETTINGS = {"tasks": ["passkey"], "seq_lens": [256], "samples": 2, "model": "constructed", "backend": "reference"}


@pytest.fixture(scope="module")
def fitting():
    """One budget below the text, one above."""
    return helpers.run(**SETTINGS, methods=["quest", "tova"], budgets=[64, 4096])


def of(records, method, budget, metric="score"):
    return next(r for r in records if (r.method, r.params["budget"], r.metric) == (method, budget, metric))


def test_where_the_text_fits_the_budget_nothing_was_left_out_and_nothing_is_tested(fitting):
    records, *_ = fitting
    for method in ("quest", "tova"):
        wide, narrow = of(records, method, 4096), of(records, method, 64)
        assert wide.stats["nothing_left_out"] and wide.stats["sparse_steps"] == 0.0
        assert not {"p_value", "lossless"} & set(wide.stats)
        assert wide.stats["delta_vs_dense"] == 0.0
        assert any("nothing was left out" in text for text in wide.warnings)
        assert not narrow.stats["nothing_left_out"] and narrow.stats["sparse_steps"] == 1.0
        assert "p_value" in narrow.stats
    corrected = [record for record in records if record.metric == "p_holm"]
    assert {record.params["budget"] for record in corrected} == {64}
    assert {record.stats["family"] for record in corrected} == {2}


def test_every_record_and_row_has_the_share_of_sparse_steps(fitting):
    records, rows, _ = fitting
    assert all(0 <= row["sparse_steps"] <= 1 for row in rows)
    assert of(records, "dense", None).stats["sparse_steps"] == 0.0
    assert not of(records, "dense", None).stats["nothing_left_out"]


def test_steps_before_the_budget_is_reached_are_not_sparse():
    # The prompt has about 250 tokens; a budget between its first and its last step is reached on the way.
    _, rows, _ = helpers.run(**SETTINGS | {"samples": 1, "protocol": "quest-paper"}, methods=["dense"])
    row = rows[0]
    budget = row["prefill_tokens"] + row["steps"] // 2
    _, rows, _ = helpers.run(**SETTINGS | {"samples": 1, "protocol": "quest-paper"}, methods=["tova"], budgets=[budget])
    share = next(row["sparse_steps"] for row in rows if row["method"] == "tova")
    assert share == pytest.approx(0.5, abs=2 / row["steps"] + 0.1) and 0 < share < 1


def test_the_record_says_how_many_samples_lossless_needs_and_so_does_the_advice(fitting):
    records, *_ = fitting
    quest = of(records, "quest", 64)
    assert quest.value == 1.0 and quest.stats["lossless"] is False and quest.stats["lossless_needs"] == 189
    assert any("use --samples 189 or more" in text for text in quest.warnings)


@pytest.mark.parametrize(
    ("task", "score", "words"),
    [
        ("passkey", 0.0, "the comparison means nothing"),
        ("passkey", 0.3, "measures the model rather than the method"),
        ("passkey", 0.5, None),
        ("passkey", 1.0, None),
        ("longbench:set=gov_report", 0.3, None),
        ("longbench:set=qasper", 0.3, "measures the model rather than the method"),
    ],
)
def test_a_low_score_of_dense_is_said(task, score, words):
    warnings = _floor([{"score": score}] * 4, make_task(task))
    assert [words in text for text in warnings] == ([True] if words else [])


def test_prompts_and_gold_answers_are_logged_on_request():
    _, plain, _ = helpers.run(**SETTINGS, methods=["quest"], budgets=[64])
    _, rows, _ = helpers.run(**SETTINGS, methods=["quest"], budgets=[64], log_samples=True)
    extra = {"prompt_text", "answers"}
    assert not any(extra & set(row) for row in plain)
    assert [{k: v for k, v in helpers.plain(row).items() if k not in extra} for row in rows] == [
        helpers.plain(row) for row in plain
    ]
    for row in rows:
        assert row["answers"] and row["completion"].strip().startswith(row["answers"][0].strip())
        assert ("prompt_text" in row) == (row["method"] == "dense")
        if "prompt_text" in row:
            assert row["answers"][0].strip() in row["prompt_text"] and "pass key" in row["prompt_text"]


def test_a_million_samples_begin_at_once(monkeypatch):
    helpers.use(helpers.random_model(), monkeypatch)
    config = AccuracyConfig(**SETTINGS | {"samples": SAMPLES_MOST, "methods": ["dense"], "threads": 1})
    accuracy.check(config)
    units = list(itertools.islice(accuracy.run(config), 2))
    assert [unit.key.rpartition("|")[2] for unit in units] == ["00000", "00001"]
    again = accuracy.run(config, finished={unit.key for unit in units}, stored=[r for u in units for r in u.samples])
    assert next(again).key.endswith("|00002")


SWEPT = {"quest.group_merge": "sum_softmax,max", "score_from": "prefill,decode"}


def test_commas_in_m_values_make_variants_of_every_experiment():
    """Kernel, e2e and accuracy alike: two of quest, two of h2o, one of tova."""
    names = ["quest", "h2o", "tova"]
    for module, config, engine in (
        (kernel, kernel.KernelConfig, kernel.experiment.KERNEL),
        (e2e, e2e.E2EConfig, e2e.experiment.E2E),
    ):
        settings = config(methods=names, method_args=SWEPT)
        module.check(settings)
        cell = module.cells(settings)[0]
        found = module.methods(settings, cell)
        assert list(found) == [
            "dense",
            "quest[group_merge=sum_softmax]",
            "quest[group_merge=max]",
            "h2o[score_from=prefill]",
            "h2o[score_from=decode]",
            "tova",
        ]
        assert [method.name for method in found.values()] == ["dense", "quest", "quest", "h2o", "h2o", "tova"]
        assert found["quest[group_merge=max]"].group_merge == "max"
        failed = [engine.unusable(settings, cell, label, ValueError("no")) for label in found]
        assert len({record.cell() for record in failed}) == 6 and failed[1].method == "quest"
    usable, _ = accuracy.cells(AccuracyConfig(tasks=["passkey"], methods=names, method_args=SWEPT))
    assert [cell.name for cell in usable] == ["dense", "quest", "quest", "h2o", "h2o", "tova"]
    assert len({cell.key for cell in usable}) == 6


def test_a_sweep_of_accuracy_has_a_record_per_variant():
    records, rows, _ = helpers.run(
        **SETTINGS | {"samples": 1}, methods=["quest"], budgets=[64], method_args={"group_merge": "sum_softmax,max"}
    )
    merges = [record.method_args["group_merge"] for record in records if record.method == "quest" and record.value == 1]
    assert sorted(set(merges)) == ["max", "sum_softmax"] and len(rows) == 3


@pytest.mark.parametrize("text", ["kv_head,", ",", "kv_head,,q_head"])
def test_an_empty_variant_is_refused(text):
    with pytest.raises(UsageError, match="nothing between two commas"):
        accuracy.cells(AccuracyConfig(tasks=["passkey"], methods=["quest"], method_args={"select_by": text}))


def test_one_wrong_variant_is_refused_by_name():
    config = AccuracyConfig(tasks=["passkey"], methods=["quest"], method_args={"select_by": "kv_head,nobody"})
    with pytest.raises(UsageError, match=r"quest\.select_by=nobody"):
        accuracy.cells(config)


def test_the_same_variant_twice_is_one():
    usable, _ = accuracy.cells(
        AccuracyConfig(tasks=["passkey"], methods=["quest"], method_args={"select_by": "kv_head,kv_head"})
    )
    assert len(usable) == 2
