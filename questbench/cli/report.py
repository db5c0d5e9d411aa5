"""``questbench report``: tables and plots from stored runs; nothing is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from questbench.cli import _options as opt
from questbench.cli._output import Output
from questbench.errors import PrerequisiteError
from questbench.flags import names

EXAMPLES = ("questbench report --compare paper", "questbench report NEW_RUN --compare OLD_RUN --no-plots")

Runs = Annotated[
    list[Path] | None,
    typer.Argument(metavar="RUN", help="Run folders, or names of runs in --out (default: all current runs there)."),
]
Compare = Annotated[
    str | None,
    typer.Option(
        "--compare",
        metavar="WITH",
        help="paper, paper:fig9, or a baseline run; ends with 5 if a run is significantly worse than its baseline.",
    ),
]
Plots = Annotated[
    str | None, typer.Option("--plot", metavar="NAMES", help="Plots to draw (see: ls plots; default: all).")
]
NoPlots = Annotated[bool, typer.Option("--no-plots", metavar="", help="Tables only.")]
Formats = Annotated[str, typer.Option("--format", metavar="NAMES", help="Files to write: md, html, csv, latex.")]
Force = Annotated[bool, typer.Option("--force", metavar="", help="Compare even runs of another machine or data type.")]
Join = Annotated[
    bool, typer.Option("--join", metavar="", help="Join the newest cells of several runs into one row and line.")
]
To = Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Folder of the report (default: OUT/report).")]


def report(
    runs: Runs = None,
    compare: Compare = None,
    plot: Plots = None,
    no_plots: NoPlots = False,
    formats: Formats = "md,html",
    force: Force = False,
    join: Join = False,
    to: To = None,
    out: opt.Out = Path("results"),
    json: opt.Json = False,
) -> int:
    """Make tables and plots of stored runs, and write report.md and report.html.

    Every run has rows and lines of its own. Without RUN, runs whose cells newer runs have measured again are left out.
    Every figure comes as PDF and PNG, with a CSV of exactly what is drawn.
    """
    from questbench.report import build

    chosen = [] if no_plots else names(plot, "--plot") if plot is not None else None
    made = build(
        runs,
        to,
        results=out,
        compare=compare,
        plots=chosen,
        force=force,
        formats=names(formats, "--format"),
        join=join,
    )
    output = Output(json=json)
    if not made.records and not made.comparison:
        for note in made.notes:
            output.say(note)
        raise PrerequisiteError("These runs hold no results yet.", "Finish one with --resume, or start a new one.")
    output.records(made.records)
    output.tables([*made.comparison, *made.tables])
    for note in made.notes:
        output.say(note)
    named = [path for path in made.paths if path.parent == (to or out / "report")]
    rest = [path for path in made.paths if path not in named]
    counts = {name: sum(path.parent.name == name for path in rest) for name in ("tables", "figures")}
    others = " and ".join(f"{count} files of {name}" for name, count in counts.items() if count)
    pages = ", ".join(map(str, named)) or str(to or out / "report")
    output.say(f"Report: {pages}" + (f" ({others})" if others else ""))
    return made.exit_code
