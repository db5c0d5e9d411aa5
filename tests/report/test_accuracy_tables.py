"""Accuracy tables: intervals, corrected p values, what could be resolved, what may be called lossless; perplexities."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import golden
import pandas as pd
import pytest

from questbench.records.schema import ResultRecord
from questbench.report.frame import cell_frame, input_columns
from questbench.report.plots import _base
from questbench.report.render import Table, to_markdown
from questbench.report.tables import tables


def one(records: list[ResultRecord]) -> Table:
    (table,) = tables(records)
    return table


def row(table: Table, method: str) -> dict[str, str]:
    names = [name.replace("\n", " ") for name in table.columns]
    return next(
        dict(zip(names, texts, strict=True))
        for texts in ([cell.text for cell in cells] for cells in table.rows)
        if method in texts
    )


def judged(samples: int, lossless: bool, margin: float = 0.02) -> list[ResultRecord]:
    """Golden scores with everything that the statistics add."""
    found = []
    for record in golden.accuracy((256,), samples=samples):
        if record.method != "dense":
            extra = {
                "delta_ci_low": -0.4,
                "delta_ci_high": -0.15,
                "lossless": lossless and record.method == "quest",
                "lossless_margin": margin,
            }
            record = dataclasses.replace(record, stats={**record.stats, **extra})
            stats = {"family": 6, "p_value": record.stats["p_value"]}
            found.append(
                dataclasses.replace(
                    record, metric="p_holm", unit="probability", value=0.04, samples=[], stats=stats, warnings=[]
                )
            )
        found.append(record)
    return found


def test_scores_with_all_that_was_tested() -> None:
    table = one(judged(200, lossless=True))
    quest = row(table, "quest")
    assert quest["score (%) mean [95% CI]"] == "70.0 [60.0–80.0]"
    assert quest["vs dense (points)"] == "-28.0 [-40.0, -15.0]"
    assert quest["p (Holm)"] == "0.0400"
    assert quest["resolvable (points)"] == "12.0"
    assert quest["lossless (2 points)"] == "yes"
    assert row(table, "tova")["lossless (2 points)"] == "no"
    dense = row(table, "dense")
    assert [dense[name] for name in ("p (Holm)", "lossless (2 points)", "vs dense (points)")] == ["—"] * 3
    text = to_markdown(table)
    assert "corrected for the 6 comparisons of the run (Holm)" in text
    assert "non-inferiority, one-sided 2.5%" in text


def test_lossless_is_not_denied_of_few_samples_either() -> None:
    assert row(one(judged(50, lossless=False)), "quest")["lossless (2 points)"] == "n < 100"
    assert "lossless (5 points)" in row(one(judged(100, lossless=False, margin=0.05)), "quest")


@pytest.mark.parametrize(
    ("samples", "stats", "shown"),
    [
        (100, {"lossless": False, "lossless_needs": 189}, "needs 189 samples"),
        (50, {"lossless": False, "lossless_needs": 1204}, "needs 1,204 samples"),
        (50, {"lossless": False, "lossless_needs": None}, "no"),
        (200, {"lossless": False, "lossless_needs": None}, "no"),
        (200, {"lossless": True, "lossless_needs": 189}, "yes"),
        (200, {"nothing_left_out": True}, "nothing left out"),
    ],
)
def test_the_cell_says_how_many_samples_lossless_needs(samples: int, stats: dict[str, Any], shown: str) -> None:
    records = []
    for record in judged(samples, lossless=False):
        if record.method == "quest" and record.metric == "score":
            kept = {k: v for k, v in record.stats.items() if k != "lossless" or "lossless" in stats}
            record = dataclasses.replace(record, stats={"nothing_left_out": False, **kept, **stats})
        records.append(record)
    assert row(one(records), "quest")["lossless (2 points)"] == shown


def texts(**changes: Any) -> list[ResultRecord]:
    """Perplexities of two methods."""
    found = []
    for method, value, p in (("dense", 6.81, None), ("quest", 6.83, 0.2), ("tova", 6.97, 0.001)):
        budget = None if method == "dense" else 512
        stats: dict[str, Any] = {"n": 4, "scored_tokens": 4096, "ci_low": 6.5, "ci_high": 7.1, "dense_fallback": False}
        if p is not None:
            relative = value / 6.81 - 1
            stats |= {"relative_vs_dense": relative, "relative_ci_low": relative - 0.004, "p_value": p}
            stats |= {"relative_ci_high": relative + 0.004, "min_detectable": 0.004, "delta_vs_dense": value - 6.81}
        params = {"task": "ppl", "seq_len": 4096, "budget": budget, "page_size": 16, "protocol": "stream"}
        score = golden.accuracy()[0]
        record = dataclasses.replace(
            score, method=method, method_args={"budget": budget}, params=params, metric="perplexity", unit="perplexity"
        )
        found.append(dataclasses.replace(record, value=value, stats=stats | changes))
        found.append(dataclasses.replace(record, metric="bits_per_byte", unit="bits/byte", value=0.71, stats={}))
    return found


def test_perplexities() -> None:
    table = one(texts())
    quest, dense = row(table, "quest"), row(table, "dense")
    assert table.title == "Accuracy: ppl, protocol stream"
    assert quest["perplexity [95% CI]"] == "6.830 [6.500–7.100]"
    assert quest["vs dense (%) [95% CI]"] == "+0.294 [-0.106, 0.694]"
    assert quest["p"] == "0.200" and quest["resolvable (%)"] == "0.400" and quest["bits per byte"] == "0.710"
    assert quest["tokens scored"] == "4,096" and quest["texts"] == "4"
    assert dense["vs dense (%) [95% CI]"] == "—"
    best = [cells[2].text for cells in table.rows if any(cell.best for cell in cells)]
    assert best == ["quest"], "the lower perplexity is the better one"
    assert "Only tokens behind the largest budget count" in to_markdown(table)


@pytest.mark.parametrize(("delta", "p", "said"), [(0.3, 0.04, True), (0.3, 0.06, False), (-0.3, 0.04, False)])
def test_a_method_that_beats_dense_beyond_chance_measures_the_model(delta: float, p: float, said: bool) -> None:
    records = judged(200, lossless=False)
    for place, record in enumerate(records):
        if record.method == "quest" and record.metric == "score":
            records[place] = dataclasses.replace(record, stats={**record.stats, "delta_vs_dense": delta})
        elif record.method == "quest" and record.metric == "p_holm":
            records[place] = dataclasses.replace(record, value=p)
    table = one(records)
    assert row(table, "quest")["vs dense (points)"].endswith("[1]") is said
    assert any("measures the model, not the method" in note for note in table.footnotes) is said


def test_a_lower_perplexity_than_that_of_dense_beyond_chance_is_noted_too() -> None:
    better = texts()
    for place, record in enumerate(better):
        if record.method == "tova" and record.metric == "perplexity":
            better[place] = dataclasses.replace(record, stats={**record.stats, "delta_vs_dense": -0.2})
    table = one(better)
    assert row(table, "tova")["vs dense (%) [95% CI]"].endswith("[1]")
    assert not row(table, "quest")["vs dense (%) [95% CI]"].endswith("[1]")


def test_a_table_says_on_which_layers_methods_act() -> None:
    said = "methods act on 3 of 18 layers (numbers 5, 11, 17)"
    assert "Methods act on 3 of 18 layers (numbers 5, 11, 17)." in one(texts(layers=said)).setup
    assert not any("act on" in line for line in one(texts()).setup)


def test_a_perplexity_of_a_fallback_is_not_shown() -> None:
    table = one(texts(dense_fallback=True))
    assert row(table, "quest")["perplexity [95% CI]"].startswith("DENSE-FALLBACK")
    assert row(table, "dense")["perplexity [95% CI]"].startswith("6.8")


def test_a_model_that_knows_nothing_of_the_text() -> None:
    huge = [dataclasses.replace(r, value=1.71e22) if r.metric == "perplexity" else r for r in texts(ci_high=None)]
    assert row(one(huge), "quest")["perplexity [95% CI]"] == "1.7e+22"
    assert any("cannot read the text" in line for line in one(huge).setup)
    assert not any("cannot read" in line for line in one(texts()).setup)


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_cells_without_a_perplexity_have_reasons(status: Any) -> None:
    records = texts()
    gone = dataclasses.replace(records[2], status=status, value=None, reason="out of memory", stats={}, samples=[])
    table = one([*records[:2], gone, *records[4:]])
    assert row(table, "quest")["perplexity [95% CI]"] == "— [1]"
    assert table.footnotes == [f"{status}: out of memory"]


def test_heat_map_counts_every_sample_once(tmp_path: Path) -> None:
    records = golden.accuracy((64, 256), (2048, 4096), samples=55)
    frame = cell_frame(records)
    (drawn,) = _base.draw("score_by_depth", frame, input_columns(frame, records), tmp_path)
    data = pd.read_csv(drawn.csv)
    for record in records:
        own = data[(data["label"] == record.method) & (data["seq_len"] == record.params["seq_len"])]
        if record.method != "dense":
            own = own[own["budget"] == record.params["budget"]]
        assert own["samples"].sum() == 55 and sorted(own["depth"]) == [step / 10 for step in range(11)]
        assert (own["score"] * own["samples"]).sum() == pytest.approx(sum(record.samples))


def test_many_depths_are_put_together_in_tenths(tmp_path: Path) -> None:
    depths = [[index / 49, 1, float(index % 2)] for index in range(50)]
    records = [
        dataclasses.replace(record, stats={**record.stats, "by_depth": depths}) for record in golden.accuracy((64,))
    ]
    frame = cell_frame(records)
    (drawn,) = _base.draw("score_by_depth", frame, input_columns(frame, records), tmp_path)
    data = pd.read_csv(drawn.csv)
    own = data[data["label"] == "quest"]
    assert (
        own["depth"].tolist() == pytest.approx([step / 10 + 0.05 for step in range(10)]) and own["samples"].sum() == 50
    )


def test_no_depths_no_heat_map(tmp_path: Path) -> None:
    frame = cell_frame(texts())
    with pytest.raises(_base.NothingToDraw, match="at depths"):
        list(_base.draw("score_by_depth", frame, ["task"], tmp_path))


def test_a_model_that_cannot_do_the_task_is_named() -> None:
    can = golden.accuracy((256,))
    cannot = [dataclasses.replace(record, value=0.0, samples=[0.0] * len(record.samples)) for record in can]
    assert any("Dense scores 0" in line for line in one(cannot).setup)
    assert not any("Dense scores 0" in line for line in one(can).setup)


def test_dense_leads_the_rows_of_its_own_model() -> None:
    records = golden.accuracy((64, 256), model="constructed") + golden.accuracy((64, 256), model="needle")
    table = one(records)
    place = [name.replace("\n", " ") for name in table.columns].index("model")
    models = [cells[place].text for cells in table.rows]
    assert models == sorted(models)
    assert [cells[place + 1].text for cells in table.rows].index("dense") == 0


def test_a_single_comparison_is_not_said_to_be_corrected() -> None:
    records = judged(200, lossless=True)
    alone = [dataclasses.replace(record, stats={**record.stats, "family": 1}) for record in records]
    assert any("comparisons of the run (Holm)" in line for line in one(records).explained())
    assert not any("Holm" in line for line in one(alone).explained())


def test_a_method_with_a_prefill_of_its_own_is_named() -> None:
    shared = golden.accuracy((64,))
    own = [
        dataclasses.replace(record, stats={**record.stats, "own_prefill": True}) if record.method == "tova" else record
        for record in shared
    ]
    said = "every method but tova starts from the same dense prefill of each sample; these read each prompt"
    assert any(said in line for line in one(own).setup)
    assert any("every method starts from the same dense prefill of each sample." in line for line in one(shared).setup)
