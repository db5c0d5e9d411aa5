"""Tables on golden records: what is shown, what is never shown, and that it can be read everywhere."""

from __future__ import annotations

import dataclasses
import io

import golden
import pytest
from rich.console import Console

from questbench.records.schema import ResultRecord, RunManifest
from questbench.report._label import labels
from questbench.report.frame import cell_frame
from questbench.report.render import Cell, Table, to_html, to_markdown, to_rich
from questbench.report.tables import tables

START = "2026-01-01T00:00:00+00:00"
MANIFEST = RunManifest("r", "kernel", ["questbench", "kernel"], {}, golden.ENVIRONMENT, START, end=START)


def one(records: list[ResultRecord]) -> Table:
    (table,) = tables([dataclasses.replace(record, run="r") for record in records], {"r": MANIFEST})
    return table


def change(records: list[ResultRecord], method: str, metric: str, **changes: object) -> list[ResultRecord]:
    return [
        dataclasses.replace(record, **changes) if (record.method, record.metric) == (method, metric) else record
        for record in records
    ]


def row(table: Table, method: str) -> dict[str, str]:
    names = [name.replace("\n", " ") for name in table.columns]
    found = [[cell.text for cell in cells] for cells in table.rows]
    return next(dict(zip(names, cells, strict=True)) for cells in found if method in cells)


def test_kernel_table() -> None:
    table = one(golden.kernel((32768,), (2048,)))
    quest = row(table, "quest")
    assert quest["latency (us) median [p20–p80]"].startswith("58")
    assert quest["ideal x vs dense"] == "8.00"
    assert quest["seq len"] == "32k"
    assert quest["tokens read"] == "2,048"
    assert float(quest["% of ideal"]) == pytest.approx(72, abs=2)
    assert row(table, "dense")["x dense"] == "1.00"
    assert row(table, "dense")["ideal x vs dense"] == "—"
    text = to_markdown(table)
    assert "32k = 32,768 tokens" in text
    assert "Test CPU 9000, 16 cores" in text
    assert "0123456789" in text


def test_speed_alone_is_never_bold() -> None:
    """The fastest method may be one that answers nothing."""
    table = one(golden.kernel((8192, 32768), (1024, 2048)))
    assert not any(cell.best for cells in table.rows for cell in cells)


def test_a_fallback_is_never_a_speed_up() -> None:
    records = golden.kernel((32768,), (2048,))
    records = change(records, "streaming_llm", "tokens_read", stats={"dense_fallback": True})
    table = one(records)
    shown = row(table, "streaming_llm")
    assert shown["x dense"].startswith("DENSE-FALLBACK [")
    assert (shown["x torch"], shown["% of ideal"]) == ("—", "—")
    assert "not a result of the method" in to_markdown(table)


@pytest.mark.parametrize(
    ("metric", "value", "column"),
    [("ideal_speedup", 3.0, "x dense"), ("bandwidth_fraction", 1.2, "% of bandwidth")],
)
def test_impossible_numbers_are_flagged(metric: str, value: float, column: str) -> None:
    table = one(change(golden.kernel((32768,), (2048,)), "quest", metric, value=value))
    assert "[1]" in row(table, "quest")[column]
    assert table.footnotes[0].startswith("mismeasured")
    assert "[1]" not in row(table, "tova")[column]


def test_other_baselines_are_not_held_against_the_ideal() -> None:
    records = golden.kernel((32768,), (2048,))
    records = [
        dataclasses.replace(record, value=99.0) if record.params.get("baseline") == "torch" else record
        for record in records
    ]
    assert not one(records).footnotes


def test_gaps_have_reasons() -> None:
    records = golden.kernel((32768,), (2048,))
    records += [
        golden.failure("snapkv", "failed", "out of memory"),
        golden.failure("pyramid", "skipped", "budget | page"),
    ]
    table = one(records)
    assert row(table, "snapkv")["latency (us) median [p20–p80]"] == "— [1]"
    assert table.footnotes == ["failed: out of memory", "skipped: budget | page"]
    assert "budget \\| page" in to_markdown(table)


def test_nothing_but_failures() -> None:
    table = one([golden.failure("quest", "failed", "no <memory>")])
    assert "no &lt;memory&gt;" in to_html(table)


def test_warnings_name_their_cells() -> None:
    records = change(golden.kernel((8192, 32768), (2048,)), "tova", "latency", warnings=["Noisy."])
    assert one(records).warnings == ["Noisy (tova 8k 2k, tova 32k 2k)"]


def test_machines_do_not_share_a_table() -> None:
    other = dataclasses.replace(MANIFEST, run="s", environment={**golden.ENVIRONMENT, "machine": "Other GPU"})
    records = golden.kernel((32768,), (2048,))
    both = [dataclasses.replace(record, run=run) for run in "rs" for record in records]
    assert len(tables(both, {"r": MANIFEST, "s": other})) == 2


def test_varying_inputs_become_columns() -> None:
    table = one(golden.kernel((32768,), (2048,)) + golden.kernel((32768,), (2048,), batch=8))
    assert "batch" in table.columns
    assert not any("batch" in line for line in table.setup)


def test_variants_are_told_apart() -> None:
    variants = [
        {"budget": 1024, "select_by": "kv_head", "recent": 512},
        {"budget": 1024, "select_by": "q_head", "recent": 512},
    ]
    variants.append({"budget": 2048, "select_by": "kv_head", "recent": 1024})
    records = [dataclasses.replace(golden.failure("quest", "failed", "x"), method_args=args) for args in variants]
    frame = cell_frame(records)
    assert labels(frame) == ["quest (select_by=kv_head)", "quest (select_by=q_head)", "quest (select_by=kv_head)"]


def test_accuracy_table() -> None:
    table = one(golden.accuracy((64, 256)))
    quest = row(table, "quest")
    assert quest["score (%) mean [95% CI]"] == "70.0 [60.0–80.0]"
    assert (quest["n"], quest["vs dense (points)"], quest["p"]) == ("50", "-28.0", "<0.001")
    assert (quest["tokens read"], quest["tokens resident"]) == ("109", "8,192")
    assert row(table, "dense")["budget"] == "—"
    assert row(table, "oracle (yardstick)")
    text = to_markdown(table)
    for part in ("Dense prefill, then evict", "Fewer than 100 samples", "protocol stepwise", "8k = 8,192 tokens"):
        assert part in text
    best = [cells[2].text for cells in table.rows if any(cell.best for cell in cells)]
    assert best == ["quest", "quest"], "a yardstick does not compete"
    assert "Bold: the highest score" in text, "what bold means is said"


def test_many_samples_are_not_illustrative() -> None:
    assert "Fewer than 100 samples" not in to_markdown(one(golden.accuracy((64,), samples=100)))


def test_accuracy_of_a_fallback_is_not_shown() -> None:
    records = golden.accuracy((64,))
    quest = next(record for record in records if record.method == "quest")
    shown = row(one(change(records, "quest", "score", stats={**quest.stats, "dense_fallback": True})), "quest")
    assert shown["score (%) mean [95% CI]"].startswith("DENSE-FALLBACK")
    assert shown["vs dense (points)"] == "—"


def test_each_task_and_protocol_has_its_table() -> None:
    records = golden.accuracy((64,), tasks=("passkey", "kv")) + golden.accuracy((64,), protocol="prefill")
    titles = [table.title for table in tables(records)]
    assert titles == [
        f"Accuracy: {name}"
        for name in ("passkey, protocol stepwise", "kv, protocol stepwise", "passkey, protocol prefill")
    ]


def test_a_library_that_is_not_known_here_is_a_baseline_all_the_same() -> None:
    """Records of another machine's plug-in: they say themselves that it is one."""
    renamed = [
        dataclasses.replace(
            record,
            method="fast" if record.method == "torch" else record.method,
            backend="fast" if record.method == "torch" else record.backend,
            params={name: "fast" if value == "torch" else value for name, value in record.params.items()},
        )
        for record in golden.kernel((32768,), (2048,))
    ]
    table = one(renamed)
    assert "x fast" in table.columns and "x torch" not in table.columns
    assert [cells[2].text for cells in table.rows][:2] == ["dense", "fast"]
    assert row(table, "fast")["ideal x vs dense"] == "—"
    assert list(cell_frame(renamed).query("baseline")["method"]) == ["dense", "fast"]


@pytest.mark.parametrize("width", [66, 80, 100, 200])
def test_narrow_terminals_lose_columns_not_digits(width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    table = one(golden.kernel((8192, 32768), (2048,)))
    console.print(to_rich(table))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    for cells in table.rows:
        latency = cells[3].text
        assert latency in text, "the latency is always there, whole"
    assert ("Left out for lack of width" in text) == (width < 120)


def test_markup_in_data_is_text() -> None:
    table = Table("t", ["[red]x"], rows=[], setup=["a_b*c"])
    console = Console(width=80, file=io.StringIO())
    console.print(to_rich(table))
    assert isinstance(console.file, io.StringIO)
    assert "[red]x" in console.file.getvalue()
    assert "a\\_b\\*c" in to_markdown(table)


def test_no_records() -> None:
    assert tables([]) == []
    assert cell_frame([]).empty


def test_warnings_that_differ_in_numbers_are_one_kind() -> None:
    records = golden.kernel((8192, 32768), (2048,))
    records = change(records, "tova", "latency", warnings=["Groups around 704 us and 1.00 ms: noisy."])
    records = change(records, "h2o", "latency", warnings=["Groups around 1.09 ms and 3.10 ms: noisy."])
    assert one(records).warnings == [
        "Groups around 1.09 ms and 3.10 ms: noisy (h2o 8k 2k; likewise tova 8k 2k, h2o 32k 2k and 1 more)"
    ]


def test_what_was_set_by_hand_always_shows() -> None:
    """Even where there is one variant only, in the words of the command line."""
    settings = {"method_args": {"quest.variant": "eval", "score_from": "decode", "h2o.bias": "true"}}
    manifest = dataclasses.replace(MANIFEST, config=settings)
    arguments = {"quest": {"variant": "eval", "select_by": "q_head"}, "h2o": {"score_from": "decode", "bias": True}}
    records = [
        dataclasses.replace(record, run="r", method_args={**record.method_args, **arguments.get(record.method, {})})
        for record in golden.kernel((32768,), (2048,))
    ]
    (table,) = tables(records, {"r": manifest})
    names = [row[table.columns.index("method")].text for row in table.rows]
    assert names[:4] == ["dense", "torch", "quest (variant=eval)", "h2o (score_from=decode, bias=true)"]
    assert names[4:] == ["tova", "streaming_llm"]


def test_a_column_goes_with_its_explanation_and_its_footnotes() -> None:
    table = Table(
        "t",
        ["name", "first", "second"],
        text_columns=frozenset({"name"}),
        optional=("first",),
        about={"first": "first: a thing", "second": "second: another"},
    )
    table.rows = [[Cell("x" * 20), Cell(f"1 {table.mark('of first')}"), Cell(f"2 {table.mark('of second')}")]]
    narrow, hidden = table.fitting(36)
    assert hidden == ["first"]
    assert narrow.explained() == ["second: another"]
    assert narrow.footnotes == ["of second"]
    assert narrow.rows[0][1].text == "2 [1]"
    assert table.explained() == ["first: a thing", "second: another"]


@pytest.mark.parametrize("width", [100, 220])
def test_the_p_column_goes_with_its_footnote(width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    records = [
        dataclasses.replace(record, stats={**record.stats, "lossless": False, "lossless_margin": 0.02})
        for record in golden.accuracy((64, 256))
    ]
    console.print(to_rich(one(records)))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    there = any("  p  " in line for line in text.splitlines())
    assert there == ("p: paired test" in text) == (width == 220)


def test_what_the_machine_did_comes_first() -> None:
    busy = "This machine was busy before the run began (load 3.2 on 2 cores): close other programs and repeat."
    records = change(golden.kernel((8192,), (2048,)), "dense", "latency", warnings=["Noisy."])
    records = change(records, "tova", "latency", warnings=[busy])
    assert one(records).warnings == [f"{busy[:-1]} (tova 8k 2k)", "Noisy (dense 8k 2k)"]
