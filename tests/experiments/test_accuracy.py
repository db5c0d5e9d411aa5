"""The accuracy experiment: one prefill per sample, residency bounds of hits, order, protocols, refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from questbench.errors import UsageError
from questbench.experiments import accuracy
from questbench.experiments.accuracy import AccuracyConfig
from questbench.records.schema import ResultRecord

SMALL = {"tasks": ["passkey"], "seq_lens": [512], "budgets": [64], "samples": 4, "threads": 1}


def run(metric: str = "score", **changes: object) -> tuple[dict[str, ResultRecord], int, list[dict]]:
    """Records by method, prefills and sample rows of a small run."""
    config = AccuracyConfig(**{**SMALL, **changes})  # type: ignore[arg-type]
    accuracy.check(config)
    records, prefills, rows = {}, 0, []
    for unit in accuracy.run(config):
        prefills += unit.prefills
        rows += unit.samples
        records |= {
            f"{r.method}@{r.params['budget']}@{r.params['page_size']}": r for r in unit.records if r.metric != "p_holm"
        }
    return records, prefills, rows


@pytest.fixture(scope="module")
def all_methods() -> tuple[dict[str, ResultRecord], int, list[dict]]:
    return run(methods=["dense", "quest", "h2o", "tova", "streaming_llm", "oracle", "random"], budgets=[64, 128])


def test_one_prefill_per_sample_serves_all_cells(all_methods):
    records, prefills, rows = all_methods
    assert prefills == 4
    assert len(records) == 1 + 6 * 2
    assert len(rows) == 4 * len(records)
    assert len({row["prompt"] for row in rows if row["sample"] == "passkey-0000"}) == 1


def test_the_known_answer_model_answers_dense_and_under_quest(all_methods):
    records, *_ = all_methods
    assert records["dense@None@16"].value == 1.0
    assert records["quest@64@16"].value == 1.0
    assert records["oracle@64@16"].value == 1.0
    assert records["tova@64@16"].value <= 0.25


def test_hits_lie_between_the_residency_counts(all_methods):
    records, *_ = all_methods
    for name in ("h2o", "tova", "streaming_llm"):
        for budget in (64, 128):
            stats = records[f"{name}@{budget}@16"].stats
            assert stats["needle_resident_last"] <= stats["hits"] <= stats["needle_resident_first"], (name, budget)


def test_counts_are_those_of_the_methods(all_methods):
    records, *_ = all_methods
    for record in records.values():
        stats, budget = record.stats, record.params["budget"]
        assert not stats["dense_fallback"]
        if budget is None:
            assert stats["tokens_visible"] == stats["tokens_read"] == stats["tokens_resident"] > 490
        elif record.method in ("h2o", "tova", "streaming_llm"):
            assert stats["tokens_visible"] == stats["tokens_read"] == stats["tokens_resident"] == budget
        else:
            assert budget - 16 < stats["tokens_visible"] <= budget
            assert stats["tokens_resident"] > 490
    assert records["oracle@64@16"].stats["yardstick"]
    assert records["oracle@64@16"].stats["tokens_scored"] > 490


def test_a_cell_does_not_depend_on_its_neighbours(all_methods):
    records, *_ = all_methods
    alone, *_ = run(methods=["tova", "quest"], budgets=[128])
    for key in ("tova@128@16", "quest@128@16", "dense@None@16"):
        assert alone[key].samples == records[key].samples
        assert alone[key].stats["tokens_read"] == records[key].stats["tokens_read"]


def test_h2o_from_decode_reads_everything_once_and_is_no_fallback():
    records, *_ = run(methods=["h2o"], method_args={"score_from": "decode"})
    stats = records["h2o@64@16"].stats
    assert not stats["dense_fallback"]
    assert stats["tokens_visible"] > 64


@pytest.mark.parametrize("protocol", ["prefill", "quest-paper"])
def test_other_protocols(protocol):
    records, prefills, rows = run(methods=["quest"], protocol=protocol)
    assert prefills == 4
    assert records["quest@64@16"].params["protocol"] == protocol
    steps = {row["steps"] for row in rows if row["method"] == "dense"}
    assert all(count <= 10 for count in steps) if protocol == "prefill" else all(count > 50 for count in steps)


def test_page_sizes_sweep():
    records, *_ = run(methods=["quest"], page_sizes=[8, 32])
    assert records["quest@64@8"].value == 1.0
    assert records["quest@64@32"].stats["tokens_visible"] <= 64


def test_impossible_budgets_are_records_and_only_impossible_ones_are_refused():
    records, *_ = run(methods=["quest"], budgets=[8, 64])
    assert records["quest@8@16"].status == "failed"
    assert "below one page" in records["quest@8@16"].reason
    with pytest.raises(UsageError, match="below one page"):
        run(methods=["quest"], budgets=[8])


def test_resume_runs_only_what_is_missing():
    config = AccuracyConfig(**{**SMALL, "methods": ["tova"]})
    units = list(accuracy.run(config))
    stored = [row for unit in units[:2] for row in unit.samples]
    rest = list(accuracy.run(config, finished={unit.key for unit in units[:2]}, stored=stored))
    assert [unit.key for unit in rest] == [unit.key for unit in units[2:]]
    assert rest[-1].records == units[-1].records
    assert sum(unit.prefills for unit in rest) == 2


@pytest.mark.slow
def test_kill_and_resume():
    script = Path(__file__).resolve().parents[2] / "scripts" / "crash_and_resume.py"
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "3", "--samples", "4"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing lost, nothing twice" in done.stdout


def test_the_streaming_window_is_where_arithmetic_says():
    """StreamingLLM answers where a mention of the key lies in the newest budget - 4 entries, and nowhere else."""
    from questbench import seeding
    from questbench.experiments.accuracy.protocol import split
    from questbench.models import constructed
    from questbench.tasks._make import make_task

    tokenizer, task, budget = constructed.build()[1], make_task("passkey"), 128
    expected = []
    for index in range(12):
        rng = seeding.generator(0, "passkey", 512, index)
        sample = task.sample(index, length=512, tokenizer=tokenizer, rng=rng)
        prompt = split(sample, tokenizer, "stepwise", task.quest_paper_chars)
        oldest = prompt.length - (budget - 4)
        expected.append(any(min(span) >= oldest for mentions in prompt.needles for span in mentions))
    _, _, rows = run(methods=["streaming_llm"], budgets=[budget], samples=12)
    found = [row["needle_resident_first"] for row in rows if row["method"] == "streaming_llm"]
    assert found == expected
    assert 0 < sum(expected) < 12


def test_progress_counts_samples_and_names_budgets_where_a_method_has_several():
    told: list[tuple[int, int, str]] = []
    config = AccuracyConfig(**{**SMALL, "methods": ["quest"], "budgets": [64, 128], "samples": 2})  # type: ignore[arg-type]
    list(accuracy.run(config, progress=lambda *state: told.append(state)))
    assert [state[:2] for state in told] == [(0, 2)] * 5 + [(1, 2), (2, 2)]
    assert [state[2] for state in told[:5]] == [
        "the first sample",
        "the first sample: 100% of 1 prompt read",
        *(f"the first sample: 1 prompt read, cell {number} of 3" for number in (1, 2, 3)),
    ]
    assert told[6][2].startswith("passkey at 512: dense 100%, quest 64 100%, quest 128 100%")


def test_progress_of_a_run_that_goes_on_begins_with_what_is_there():
    settings = {**SMALL, "methods": ["dense"], "samples": 2}
    config = AccuracyConfig(**settings)  # type: ignore[arg-type]
    first = next(accuracy.run(config))
    told: list[tuple[int, int, str]] = []
    stored = [{"unit": first.key, **row} for row in first.samples]
    list(accuracy.run(config, finished={first.key}, stored=stored, progress=lambda *state: told.append(state)))
    assert [state[:2] for state in told] == [(0, 2), (1, 2), (2, 2)], "what is there tells more than parts of a sample"
    assert told[1][2].startswith("passkey at 512: dense 100%")
