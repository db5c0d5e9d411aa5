"""The paper's numbers, and ours beside them."""

from __future__ import annotations

import dataclasses

import golden
import pytest

from questbench import _paths
from questbench.errors import UsageError
from questbench.records.schema import ResultRecord, RunManifest
from questbench.report import paper
from questbench.report.render import Table, to_markdown

MANIFEST = RunManifest("r", "kernel", [], {}, golden.ENVIRONMENT, "2026-01-01")


def compare(records: list[ResultRecord], *only: str) -> tuple[list[Table], list[str]]:
    return paper.compare([dataclasses.replace(record, run="r") for record in records], {"r": MANIFEST}, only)


def entry(name: str) -> dict[str, object]:
    return next(item for item in paper.load()["entries"] if item["id"] == name)


def test_entries_are_complete() -> None:
    assert (_paths.published_results() / "paper.json").is_file()
    entries = paper.load()["entries"]
    assert len({item["id"] for item in entries}) == len(entries) == 275
    for item in entries:
        assert set(item) - {"note"} == {
            "id",
            "figure",
            "kind",
            "method",
            "metric",
            "unit",
            "value",
            "source",
            "tolerance",
            "setup",
        }
        assert item["source"] in paper.load()["sources"]
        assert set(item["tolerance"]) <= {"absolute", "relative"} and item["tolerance"]
        assert item["value"] >= 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("table1-10k-quest-64", 0.99),
        ("table1-100k-quest-256", 0.88),
        ("fig6-quest", 6.819),
        ("fig7-hotpotqa-quest-256", 0.1988),
        ("fig7-hotpotqa-h2o-256", 0.2260),
        ("fig8-estimate-8k-page16", 0.096),
        ("fig9-32k-2k", 87.2e-6),
        ("fig9-32k-2k-speedup", 7.03),
        ("fig10-fp16-32k-2k-speedup", 1.74),
        ("fig10-awq-4bit-32k-2k-speedup", 2.23),
        ("fig11a-narrativeqa-tova", 14336),
        ("fig11b-triviaqa-quest", 60.4e-6),
    ],
)
def test_known_numbers(name: str, value: float) -> None:
    assert entry(name)["value"] == pytest.approx(value)


def test_speed_ups_above_their_ideal_are_named() -> None:
    above = set()
    for item in paper.load()["entries"]:
        if item["figure"] == "Fig 9" and item["metric"] == "speedup.dense":
            setup = item["setup"]
            if item["value"] > 1 / (1 / setup["page_size"] + setup["budget"] / setup["seq_len"]):
                above.add(item["id"])
    assert above == {"fig9-8k-1k-speedup", "fig9-8k-2k-speedup", "fig9-16k-1k-speedup", "fig9-16k-2k-speedup"}
    assert any("above the ratio of the traffic" in note for note in paper.load()["notes"])


def test_ours_beside_the_papers() -> None:
    (table,), _ = compare(golden.kernel(), "fig9")
    text = to_markdown(table)
    (line,) = [line for line in text.splitlines() if "speed-up over dense, 32k long, budget 2k" in line]
    assert "7.03 x" in line
    for difference in (
        "device Test CPU 9000, 16 cores, paper RTX 4090",
        "KV heads 8, paper 32",
        "dtype bf16, paper fp16",
    ):
        assert difference in text
    assert "page size 16, paper" not in text, "what agrees is not named"


def test_one_line_per_own_set_up() -> None:
    (table,), _ = compare(golden.kernel() + golden.kernel(dtype="fp16"), "fig9")
    dense = [row for row in table.rows if row[0].text == "dense"]
    assert len(dense) == 3 * 2, "three lengths in two data types; budgets of dense are not told apart"


def test_accuracy_names_model_and_length() -> None:
    tables, _ = compare(golden.accuracy((64, 256), (8192, 16384)), "table1")
    text = to_markdown(tables[0])
    assert "model constructed, paper LongChat-7b-v1.5-32k" in text
    assert "length 8k, paper 10000" in text
    assert "points" in text


def test_estimate_needs_the_page_size() -> None:
    (table,), _ = compare(golden.kernel(), "fig8")
    lines = [row[1].text for row in table.rows if "time of score" in row[1].text]
    assert lines == ["time of score / time of dense, 8k long"]


def test_nothing_of_ours() -> None:
    tables, notes = paper.compare([])
    assert "nothing to compare" in notes[0]
    text = "\n".join(map(to_markdown, tables))
    for number in ("7.03", "1.74", "2.23", "6.82", "99.0", "4.54"):
        assert number in text
    assert {table.title.split(" of the paper")[0] for table in tables} == set(paper.figures())


def test_figures_by_name() -> None:
    for name in ("fig9", "Fig 9", "figure9", "FIG9", "9"):
        tables, _ = paper.compare([], only=[name])
        assert all(table.title.startswith("Fig 9") for table in tables)
    with pytest.raises(UsageError, match="12"):
        paper.compare([], only=["fig12"])


def test_accuracy_names_few_samples_and_other_variants() -> None:
    records = [
        dataclasses.replace(record, method_args={**record.method_args, "score_from": "prefill"})
        if record.method == "h2o"
        else record
        for record in golden.accuracy((64,), samples=20)
    ]
    tables, _ = compare(records, "table1")
    for table in tables:
        marks = {line[0].text: table.footnotes[int(line[-1].text.strip("[]")) - 1] for line in table.rows}
        assert all("only 20 samples" in text for text in marks.values())
        assert "scores from prefill, paper decode" in marks["h2o"]
        assert "paper decode" not in marks["tova"]


def test_a_score_of_another_length_is_called_nearest_and_used_once() -> None:
    """One 4k score is not set against both the 10k and the 100k of Table 1."""
    tables, _ = compare(golden.accuracy((64, 256), (4096,)), "table1")
    (table,) = tables
    columns = {name: table.columns.index(name) for name in ("method", "what", "counterpart")}
    rows = [{name: row[place].text for name, place in columns.items()} for row in table.rows]
    quest = [row for row in rows if row["method"] == "quest"]
    assert quest and len({row["what"] for row in quest}) == len(quest) == 2
    assert {row["counterpart"] for row in quest} == {"nearest: length 4k, paper 10000"}
    assert "0 of its" in table.title and "a nearest one" in table.title


def test_the_same_axes_are_called_so() -> None:
    tables, _ = compare(golden.kernel(), "fig9")
    (table,) = tables
    column = table.columns.index("counterpart")
    assert {row[column].text for row in table.rows} == {"same axes"}
