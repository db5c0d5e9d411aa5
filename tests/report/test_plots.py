"""Plots: files that venues accept, numbers that can be checked, one look per method."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import golden
import pandas as pd
import pytest

from questbench.errors import UsageError
from questbench.records.schema import ResultRecord
from questbench.report import style
from questbench.report.frame import cell_frame, input_columns
from questbench.report.plots import _base

RECORDS = {"kernel": golden.kernel(), "accuracy": golden.accuracy((64, 256), (8192, 32768)), "e2e": golden.e2e()}


def draw(name: str, records: list[ResultRecord], out: Path) -> list[_base.Drawn]:
    frame = cell_frame(records)
    return list(_base.draw(name, frame, input_columns(frame, records), out))


@pytest.mark.parametrize("name", _base.names())
def test_every_plot_writes_its_files(name: str, tmp_path: Path) -> None:
    plot = _base.load(name)
    records = perplexities() if name == "perplexity_by_budget" else RECORDS[plot.KIND]
    frame = cell_frame(records)
    (drawn,) = draw(name, records, tmp_path / "first")
    assert [path.suffix for path in drawn.paths] == [".pdf", ".png", ".csv"]
    assert drawn.png.read_bytes().startswith(b"\x89PNG")
    pdf = drawn.pdf.read_bytes()
    assert b"/Type3" not in pdf, "several venues refuse Type 3 fonts"
    assert b"CreationDate" not in pdf
    with _base.blank() as figure:
        data = plot.draw(frame, figure)
        assert any(axes.has_data() for axes in figure.axes)
    written = pd.read_csv(drawn.csv)
    assert list(written.columns) == list(data.columns)
    for column in data.select_dtypes("number"):
        assert written[column].to_numpy() == pytest.approx(data[column].to_numpy(), nan_ok=True)
    (again,) = draw(name, records, tmp_path / "second")
    for one, two in zip(drawn.paths, again.paths, strict=True):
        assert one.read_bytes() == two.read_bytes(), f"{one.suffix} depends on more than the records"


def test_csv_holds_the_drawn_values(tmp_path: Path) -> None:
    (drawn,) = draw("latency_by_length", RECORDS["kernel"], tmp_path)
    data = pd.read_csv(drawn.csv)
    chosen = data[(data["label"] == "quest") & (data["seq_len"] == 32768) & (data["budget"] == 2048)]
    record = next(
        record
        for record in RECORDS["kernel"]
        if record.method == "quest"
        and record.metric == "latency"
        and (record.params["seq_len"], record.params["budget"], record.params["stage"]) == (32768, 2048, "total")
    )
    assert chosen["latency_seconds"].tolist() == [record.value]
    assert chosen["latency.p20_seconds"].tolist() == [record.stats["p20"]]


def test_nothing_to_draw_has_a_reason(tmp_path: Path) -> None:
    with pytest.raises(_base.NothingToDraw, match="two or more lengths"):
        draw("latency_by_length", golden.kernel((8192,), (1024,)), tmp_path)
    with pytest.raises(_base.NothingToDraw, match="no results of 'accuracy'"):
        draw("accuracy_by_budget", RECORDS["kernel"], tmp_path)
    with pytest.raises(_base.NothingToDraw):
        draw("speedup_vs_ideal", [golden.failure("quest", "failed", "x")], tmp_path)
    assert not list(tmp_path.iterdir()), "no empty figure"


def test_fallbacks_are_not_drawn(tmp_path: Path) -> None:
    records = [
        ResultRecord(**{**record.__dict__, "stats": {**record.stats, "dense_fallback": True}})
        if record.method == "quest"
        else record
        for record in RECORDS["kernel"]
    ]
    for name in ("latency_by_length", "speedup_vs_ideal", "stage_breakdown"):
        (drawn,) = draw(name, records, tmp_path)
        assert "quest" not in set(pd.read_csv(drawn.csv)["label"])


def test_set_ups_that_differ_otherwise_get_their_own_figure(tmp_path: Path) -> None:
    records = RECORDS["kernel"] + golden.kernel(dtype="fp32")
    names = [drawn.name for drawn in draw("speedup_vs_ideal", records, tmp_path)]
    assert names == ["speedup_vs_ideal-dtype=bf16", "speedup_vs_ideal-dtype=fp32"]


def test_dense_is_drawn_for_every_page_size(tmp_path: Path) -> None:
    other = [record for record in golden.accuracy(page_size=32) if record.method != "dense"]
    drawn = draw("accuracy_by_budget", golden.accuracy() + other, tmp_path)
    assert len(drawn) == 2
    assert all("dense" in set(pd.read_csv(figure.csv)["label"]) for figure in drawn)


def test_a_look_does_not_depend_on_the_company() -> None:
    few, many = style.looks(["quest"]), style.looks(["dense", "h2o", "quest", "snapkv"])
    assert few["quest"] == many["quest"]
    looks = style.looks([*style._FIXED, "snapkv", "other", "oracle"], ["oracle"])
    for aspect in ("colour", "marker"):
        assert len({getattr(look, aspect) for look in looks.values()}) == len(looks)
    variants = style.looks(["quest", "quest (select_by=q_head)"])
    assert len({look.colour for look in variants.values()}) == 1
    assert len({look.hollow for look in variants.values()}) == 2


def test_unknown_plot() -> None:
    with pytest.raises(UsageError, match="latency_by_length"):
        _base.load("latency_by_lenght")


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file is a new plot, and nothing else is edited."""
    import questbench.report.plots
    from questbench._paths import CHECKOUT

    (code,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / "docs" / "records.md").read_text(), re.DOTALL)
    (tmp_path / "traffic_by_length.py").write_text(code)
    monkeypatch.setattr(questbench.report.plots, "__path__", [*questbench.report.plots.__path__, str(tmp_path)])
    assert "traffic_by_length" in _base.names()
    (drawn,) = draw("traffic_by_length", RECORDS["kernel"], tmp_path / "out")
    assert not pd.read_csv(drawn.csv).empty


@pytest.mark.parametrize(("low", "high"), [(70, 280), (170, 700_000), (100, 101), (200, 5000), (0.02, 3)])
def test_a_logarithmic_axis_has_ticks_that_fit(low: float, high: float) -> None:
    with _base.blank() as figure:
        axes = figure.subplots()
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        style.plain_log_axis(axes)
        figure.canvas.draw()
        shown = [text.get_text() for text in axes.get_yticklabels()]
        assert 3 <= len(shown) <= 7
        assert len(set(shown)) == len(shown)
        assert all("e" not in text for text in shown)


def test_names_that_are_too_long_for_the_line_go_into_the_legend() -> None:
    arguments = {"select_by": "kv_head", "group_merge": "sum_softmax"}
    records = [
        dataclasses.replace(record, method_args={**record.method_args, **extra})
        for extra in (arguments, {"select_by": "q_head", "group_merge": "max"})
        for record in golden.kernel(budgets=(2048,))
        if record.method in ("dense", "quest")
    ]
    frame = cell_frame(records)
    for name in ("latency_by_length", "speedup_vs_ideal", "stage_breakdown"):
        with _base.blank() as figure:
            _base.load(name).draw(frame, figure)
            figure.canvas.draw()
            (axes,) = figure.axes
            (legend,) = figure.legends
            assert legend.get_window_extent().x0 >= 0
            assert legend.get_window_extent().x1 <= figure.bbox.x1
            assert axes.get_position().width > 0.5, "the panel keeps its room"


def test_panels_keep_their_height_above_long_small_print() -> None:
    heights = []
    for lines in (1, 15):
        with _base.blank() as figure:
            (axes,) = style.panels(figure, 1, height=1.0)
            style.small_print(figure, "\n".join(["Something to know."] * lines))
            figure.draw_without_rendering()
            heights.append(axes.get_position().height * figure.get_size_inches()[1])
    assert heights[1] > 0.7 * heights[0]


def test_small_print_stays_below_tall_figures() -> None:
    records = golden.accuracy((64, 256), (4096, 8192, 16384, 32768), ("passkey", "kv", "niah", "vt"))
    with _base.blank() as figure:
        _base.load("accuracy_by_budget").draw(cell_frame(records), figure)
        style.small_print(figure, "Some machine.\nSome remark.")
        figure.canvas.draw()
        below = figure.texts[-1].get_window_extent().y1
        assert below < min(axes.get_tightbbox().y0 for axes in figure.axes if axes.get_visible())


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    records = golden.accuracy((64,), (4096, 8192), tuple(f"task{number}" for number in range(13)))
    with _base.blank() as figure:
        data = _base.load("accuracy_by_budget").draw(cell_frame(records), figure)
        assert len(figure.axes) == 24
        assert data.attrs[_base.REMARK].startswith("2 more set-ups")
    with _base.blank() as figure:
        records = golden.accuracy(tuple(2**power for power in range(5, 13)))
        data = _base.load("score_by_depth").draw(cell_frame(records), figure)
        assert data.attrs[_base.REMARK].startswith("2 more budgets")
        assert data.loc[data["method"] != "dense", "budget"].nunique() == 6


def places(name: str, x: str) -> dict[str, list[float]]:
    """Where the points of every method are drawn, and whether the data say the same."""
    with _base.blank() as figure:
        data = _base.load(name).draw(cell_frame(golden.accuracy((64, 256))), figure)
        drawn = {}
        for bars in figure.axes[0].containers:
            line = data[(data["label"] == bars.get_label()) & data["score"].notna()]
            if len(line):
                drawn[bars.get_label()] = [bars[0].get_xdata()[0], line[x].iloc[0]]
        return drawn


def test_methods_of_one_budget_stand_side_by_side() -> None:
    found = places("accuracy_by_budget", "budget")
    assert len({at for at, _ in found.values()}) == len(found) == 4
    assert all(at == pytest.approx(value, rel=0.12) for at, value in found.values())


def test_measured_counts_are_not_moved() -> None:
    assert all(at == value for at, value in places("accuracy_by_tokens_read", "tokens_read").values())


def test_speed_ups_over_many_lengths_are_logarithmic() -> None:
    for lengths, scale in (((8192, 32768), "linear"), ((1024, 8192, 131072), "log")):
        with _base.blank() as figure:
            _base.load("speedup_vs_ideal").draw(cell_frame(golden.kernel(lengths, (1024,))), figure)
            assert figure.axes[0].get_yscale() == scale


def test_bars_leave_the_panel_only_where_they_would_dwarf_the_rest() -> None:
    for records, clipped in ((golden.kernel((8192,), (4096,)), False), (golden.kernel((131072,), (1024,)), True)):
        with _base.blank() as figure:
            _base.load("stage_breakdown").draw(cell_frame(records), figure)
            assert any("»" in text.get_text() for text in figure.axes[0].texts) == clipped


def axes_of(name: str, records: list[ResultRecord]) -> tuple[list[tuple[float, float]], list[list[str]], pd.DataFrame]:
    """x limits and tick labels of every panel, and the data."""
    with _base.blank() as figure:
        data = _base.load(name).draw(cell_frame(records), figure)
        figure.canvas.draw()
        panels = [axes for axes in figure.axes if axes.get_visible()]
        ticks = [[text.get_text() for text in axes.get_xticklabels()] for axes in panels]
        return [axes.get_xlim() for axes in panels], ticks, data


def test_panels_of_one_figure_have_one_x_axis() -> None:
    records = golden.kernel((8192, 16384), (1024,)) + golden.kernel((16384, 32768), (2048,))
    for name in ("latency_by_length", "speedup_vs_ideal"):
        limits, _, _ = axes_of(name, records)
        assert len(limits) == 2 and len(set(limits)) == 1
    scores = golden.accuracy((64, 256), (8192,), ("passkey",)) + golden.accuracy((256, 1024), (8192,), ("kv",))
    limits, ticks, _ = axes_of("accuracy_by_budget", scores)
    assert len(set(limits)) == 1
    assert ticks == [["64", "256", "1k"]] * 2


def test_at_one_budget_the_methods_stand_along_the_axis() -> None:
    _, ticks, _ = axes_of("accuracy_by_budget", golden.accuracy((64,), (8192,), ("passkey", "kv")))
    assert len(ticks) == 2
    assert [name.replace("\n", "") for name in ticks[0]] == [
        "h2o",
        "tova",
        "streaming_llm",
        "oracle",
        "random",
        "quest",
    ]


def test_titles_of_the_heat_map_do_not_touch() -> None:
    records = golden.accuracy((64,), (4096, 8192))
    extra = {"select_by": "q_head", "group_merge": "sum_softmax"}
    records += [
        dataclasses.replace(record, method_args={**record.method_args, **extra})
        for record in records
        if record.method == "quest"
    ]
    with _base.blank() as figure:
        _base.load("score_by_depth").draw(cell_frame(records), figure)
        figure.canvas.draw()
        boxes = sorted((axes.title.get_window_extent() for axes in figure.axes[:-1]), key=lambda box: box.x0)
        assert len(boxes) == 8
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_diamonds_away_from_their_bars_are_explained() -> None:
    records = [
        dataclasses.replace(record, value=(record.value or 0) * 2.5)
        if (record.metric, record.params.get("stage"), record.method) == ("tpot", "total", "quest")
        else record
        for record in golden.e2e()
    ]
    _, _, data = axes_of("e2e_parts", records)
    assert "Diamonds beyond their bars (quest): the plain step took up to 2.5 times" in data.attrs[_base.REMARK]
    _, _, data = axes_of("e2e_parts", golden.e2e())
    assert _base.REMARK not in data.attrs


def test_what_has_no_longest_text_is_named() -> None:
    records = golden.kernel((8192,), (2048,)) + golden.kernel((8192, 32768), (1024,))
    _, _, data = axes_of("stage_breakdown", records)
    assert "having no text of 32k: budget 2k" in data.attrs[_base.REMARK]


def test_warnings_of_the_machine_stand_below_the_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(style, "small_print", lambda figure, text: texts.append(text))
    busy = "This machine was busy before the run began (load 3.0 on 2 cores): timings will be disturbed."
    records = [
        dataclasses.replace(record, warnings=[busy if record.method == "quest" else "Some other remark."])
        if record.metric == "latency" and record.method in ("quest", "tova")
        else record
        for record in golden.kernel()
    ]
    draw("latency_by_length", records, tmp_path)
    assert "Warning: This machine was busy" in texts[0]
    assert "Some other remark" not in texts[0], "of a few cells only"


def perplexities() -> list[ResultRecord]:
    """Of three methods at two budgets."""
    found = []
    for method, budget, relative in (
        ("dense", 0, None),
        ("quest", 64, 0.05),
        ("quest", 256, 0.01),
        ("tova", 64, 0.2),
        ("tova", 256, 0.1),
    ):
        stats = {} if relative is None else {"relative_vs_dense": relative, "relative_ci_low": relative - 0.01}
        stats |= {} if relative is None else {"relative_ci_high": relative + 0.01}
        record = golden.accuracy((64,))[0]
        params = {**record.params, "task": "ppl", "budget": budget}
        changes = {"method": method, "params": params, "metric": "perplexity", "unit": "perplexity"}
        value = 10.0 * (1 + (relative or 0.0))
        found.append(dataclasses.replace(record, **changes, value=value, samples=[], stats=stats))  # type: ignore[arg-type]
    return found


def test_perplexity_is_drawn_against_dense(tmp_path: Path) -> None:
    (drawn,) = draw("perplexity_by_budget", perplexities(), tmp_path)
    data = pd.read_csv(drawn.csv).set_index(["label", "budget"])
    assert data.loc[("quest", 64), "perplexity.relative_vs_dense"] == pytest.approx(0.05)
    assert data.loc[("dense", 0), "perplexity.relative_vs_dense"] == 0
    assert data.loc[("tova", 256), "perplexity"] == pytest.approx(11.0)
    with pytest.raises(_base.NothingToDraw, match="perplexity"):
        draw("perplexity_by_budget", RECORDS["accuracy"], tmp_path)


@pytest.mark.parametrize(("largest", "scale"), [(0.2, "linear"), (34.0, "symlog")])
def test_one_perplexity_far_from_the_others_does_not_squeeze_them(
    largest: float, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales = []
    monkeypatch.setattr(style, "name_lines", lambda _, axes, __: scales.extend(one.get_yscale() for one in axes))
    records = [
        dataclasses.replace(record, stats={**record.stats, "relative_vs_dense": largest, "relative_ci_high": largest})
        if record.method == "tova" and record.params["budget"] == 64
        else record
        for record in perplexities()
    ]
    draw("perplexity_by_budget", records, tmp_path)
    assert scales == [scale]
