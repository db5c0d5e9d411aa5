"""``report`` from end to end, on files alone."""

from __future__ import annotations

import ast
import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import golden
import pytest

from questbench import report
from questbench._paths import CHECKOUT, PACKAGE
from questbench.errors import ExitCode, PrerequisiteError, UsageError
from questbench.records import store

SMALL = ((8192, 16384), (1024,))


def test_build_writes_everything(tmp_path: Path) -> None:
    golden.write_run(tmp_path, golden.kernel(*SMALL))
    golden.write_run(tmp_path, golden.accuracy((64, 256)), kind="accuracy")
    made = report.build(results=tmp_path)
    out = tmp_path / "report"
    assert made.exit_code is ExitCode.OK
    assert {path.relative_to(out).as_posix() for path in made.paths} == {
        "report.md",
        "report.html",
        *(
            f"figures/{name}.{kind}"
            for name in (
                "accuracy_by_budget",
                "accuracy_by_tokens_read",
                "latency_by_length",
                "score_by_depth",
                "speedup_vs_ideal",
                "stage_breakdown",
            )
            for kind in ("pdf", "png", "csv")
        ),
    }
    text = (out / "report.md").read_text()
    for part in ("Test CPU 9000", "torch 2.9.0", "0123456789", "## Runs", "questbench accuracy"):
        assert part in text
    for link in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (out / link).is_file()
    page = (out / "report.html").read_text()
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == 6
    assert base64.b64decode(images[0]).startswith(b"\x89PNG")
    widths = [float(width) for width in re.findall(r'style="width: ([\d.]+)in"', page)]
    assert len(widths) == len(images)
    assert max(widths) == pytest.approx(6.8 * 1.5, abs=0.01), "figures for a page, in the size of a screen"
    assert "@media print" in page
    for link in re.findall(r'href="([^"]+)"', page):
        assert (out / link).is_file()
    assert "http" not in re.sub(r"https://arxiv\S+", "", page), "the page is self-contained"
    assert len(made.tables) == 2 and not made.comparison
    assert store.runs(tmp_path) and out not in store.runs(tmp_path), "the report's own folder is no run"


def test_chosen_plots_and_formats(tmp_path: Path) -> None:
    run = golden.write_run(tmp_path / "results", golden.kernel(*SMALL))
    made = report.build([run], tmp_path / "out", plots=["stage_breakdown"], formats=["md"])
    assert [path.name for path in made.paths] == [
        "report.md",
        "stage_breakdown.pdf",
        "stage_breakdown.png",
        "stage_breakdown.csv",
    ]
    with pytest.raises(UsageError, match="Unknown plot"):
        report.build([run], tmp_path / "out", plots=["pie"])
    with pytest.raises(UsageError, match="Unknown report format"):
        report.build([run], tmp_path / "out", formats=["docx"])


def test_skipped_plots_say_why(tmp_path: Path) -> None:
    golden.write_run(tmp_path, golden.kernel((8192,), (1024,)))
    made = report.build(results=tmp_path, plots=["latency_by_length", "accuracy_by_budget"])
    assert [note for note in made.notes if "needs two or more lengths" in note]
    assert [note for note in made.notes if "no results of 'accuracy'" in note]
    assert not (tmp_path / "report" / "figures").exists()


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="no run") as error:
        report.build(results=tmp_path / "nothing")
    assert error.value.hint and "questbench kernel" in error.value.hint
    with pytest.raises(PrerequisiteError, match="does not exist"):
        report.build([tmp_path / "nowhere"])
    with pytest.raises(PrerequisiteError, match="does not exist"):
        report.build(results=tmp_path, compare=tmp_path / "nowhere")


def test_the_paper_needs_no_runs(tmp_path: Path) -> None:
    made = report.build(results=tmp_path / "nothing", out=tmp_path / "out", compare="paper")
    assert made.comparison
    assert "nothing to compare" in (tmp_path / "out" / "report.md").read_text()
    made = report.build(results=tmp_path / "nothing", out=tmp_path / "out", compare="paper:fig9")
    assert all(table.title.startswith("Fig 9") for table in made.comparison)


def test_a_regression_sets_the_exit_code(tmp_path: Path) -> None:
    before = golden.write_run(tmp_path, golden.kernel(*SMALL))
    golden.write_run(tmp_path, golden.kernel(*SMALL, slower=1.5, seed=1))
    made = report.build(results=tmp_path, compare=before, plots=[])
    assert made.exit_code is ExitCode.REGRESSION
    assert len(made.regressions) == 8
    assert "Regression: quest" in (tmp_path / "report" / "report.md").read_text()


def test_another_machine_is_refused(tmp_path: Path) -> None:
    before = golden.write_run(tmp_path / "a", golden.kernel(*SMALL), environment={"machine": "Other GPU"})
    golden.write_run(tmp_path / "b", golden.kernel(*SMALL))
    with pytest.raises(UsageError, match="another machine"):
        report.build(results=tmp_path / "b", compare=before, plots=[])
    report.build(results=tmp_path / "b", compare=str(before), plots=[], force=True)


def test_newest_wins_per_machine(tmp_path: Path) -> None:
    old = golden.kernel((8192,), (1024,))
    new = golden.kernel((8192,), (1024,), seed=5)
    for records, environment in ((old, None), (old, {"machine": "Other GPU"}), (new, None)):
        golden.write_run(tmp_path, records, environment=environment)
    made = report.build(results=tmp_path, plots=[])
    assert len(made.tables) == 2
    assert len(made.records) == len(old) + len(new)
    values = [record.value for record in made.records]
    assert {record.value for record in old} <= set(values), "the other machine's"
    assert {record.value for record in new} <= set(values)


def test_unwritable_output(tmp_path: Path) -> None:
    golden.write_run(tmp_path, golden.kernel((8192,), (1024,)))
    (tmp_path / "file").write_text("")
    with pytest.raises(PrerequisiteError, match="Cannot write"):
        report.build(results=tmp_path, out=tmp_path / "file" / "out", plots=[])


def test_report_does_not_import_torch(tmp_path: Path) -> None:
    """In a fresh process, from the command to the last figure."""
    golden.write_run(tmp_path, golden.kernel(*SMALL))
    code = (
        "import sys; from pathlib import Path; from questbench import report;"
        "assert not {'pandas', 'matplotlib', 'torch'} & set(sys.modules), 'importing must be cheap';"
        f"report.build(results=Path({str(tmp_path)!r}), compare='paper');"
        "bad = [m for m in sys.modules if m.partition('.')[0] in ('torch', 'transformers') or"
        " m.startswith(('questbench.experiments', 'questbench.methods', 'matplotlib.pyplot'))];"
        "assert not bad, bad"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize("package", ["report", "records"])
def test_imports_point_one_way(package: str) -> None:
    allowed = {"errors", "units", "registry", "_paths", "records", "report", "__version__"}
    for file in (PACKAGE / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                assert module.partition(".")[0] not in ("torch", "transformers"), f"{file.name} imports {module}"
                parts = module.split(".")
                if parts[0] == "questbench" and len(parts) > 1:
                    assert parts[1] in allowed, f"{file.name} imports {module}"
                    assert not (package == "records" and parts[1] == "report"), f"{file.name} imports {module}"
