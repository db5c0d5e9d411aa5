"""Tables and figures from stored records alone: nothing here measures, and nothing here imports torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from questbench.errors import ExitCode, PrerequisiteError, UsageError
from questbench.records import store
from questbench.records.schema import ResultRecord, RunManifest
from questbench.records.writer import unwritable

if TYPE_CHECKING:
    from questbench.report.plots._base import Drawn
    from questbench.report.render import Table

FORMATS = ("md", "html", "csv", "latex")
PAGES = ("md", "html")
"""Formats that are written unless others are asked for."""


@dataclasses.dataclass
class Report:
    """What :func:`build` made."""

    records: list[ResultRecord]
    """Of every run that is shown, newest per cell and metric."""
    tables: list[Table]
    comparison: list[Table]
    notes: list[str]
    """Sentences for the reader: runs left out, skipped plots, missing counterparts."""
    regressions: list[str]
    """What became significantly worse; the exit code says so too."""
    paths: list[Path]
    """Files written."""

    @property
    def exit_code(self) -> ExitCode:
        """``REGRESSION`` if a comparison found one."""
        return ExitCode.REGRESSION if self.regressions else ExitCode.OK


def build(
    runs: Sequence[Path] | None = None,
    out: Path | None = None,
    *,
    results: Path = Path("results"),
    compare: str | Path | None = None,
    plots: Sequence[str] | None = None,
    force: bool = False,
    formats: Sequence[str] = PAGES,
    join: bool = False,
) -> Report:
    """Write a report of stored runs.

    Args:
        runs: run folders, their names in ``results``, folders of runs or ``records.jsonl`` files. If ``None`` or empty:
            every run in ``results``, except those whose cells newer runs of the same machine have measured again.
        out: where to write; ``results/report`` if ``None``.
        results: the results folder.
        compare: ``paper``, one of its figures as ``paper:fig9``, or a baseline: a run folder or a folder of runs.
        plots: names of plots; all if ``None``, none if empty.
        force: compare with a baseline of another machine or data type all the same.
        formats: ``md`` and ``html`` pages, ``csv`` and ``latex`` with a file per table.
        join: cells of several runs make one row and one line each, newest first, instead of a row per run.

    Raises:
        UsageError: unknown plot, format or figure, or a comparison of different machines.
        PrerequisiteError: there is no run, or a file cannot be read or written.
    """
    from questbench.report import _files, _runs, document
    from questbench.report.tables import tables

    if unknown := [name for name in formats if name not in FORMATS]:
        raise UsageError(
            f"Unknown report format '{unknown[0]}'. Known: {', '.join(FORMATS)}.", "Use: md,html,csv,latex"
        )
    known = _plot_names(plots)
    out = out or results / "report"
    with_paper = isinstance(compare, str) and compare.partition(":")[0] == "paper"
    baseline = _runs.find([Path(compare)], results) if compare is not None and not with_paper else []
    folders = _runs.find(runs, results) if runs else [run for run in store.runs(results) if run not in baseline]
    if not folders and not with_paper:
        raise PrerequisiteError(f"There is no run in '{results}'.", "Make one with: questbench kernel")
    found = _runs.gather(folders, whole=bool(runs) or join)
    records = found.joined() if join else found.all()
    manifests = {run: found.manifests[run] for run in found.manifests if any(record.run == run for record in records)}

    shown: list[Table] = []
    notes = list(found.left_out)
    regressions: list[str] = []
    if with_paper:
        from questbench.report import paper

        only = [name for name in str(compare).partition(":")[2].split(",") if name]
        shown, more = paper.compare(records, manifests, only)
        notes += more
    elif baseline:
        from questbench.report import compare as comparing

        earlier = _runs.gather(baseline, whole=True)
        both = {**earlier.manifests, **found.manifests}
        compared = comparing.compare(earlier.joined(), found.joined(), both, force=force)
        shown, regressions = compared.tables, compared.regressions
        notes += [*earlier.left_out, *compared.notes, *(f"Regression: {text}" for text in regressions)]

    own = tables(records, manifests, join=join)
    try:
        out.mkdir(parents=True, exist_ok=True)
        drawn, skipped = _draw(records, manifests, known, out / "figures", join=join) if records else ([], [])
        made = document.Document(list(manifests.values()), own, drawn, shown, [*notes, *skipped])
        paths = document.write(made, out, formats)
        paths += _files.write_tables([*shown, *own], out, formats)
        paths += [path for figure in drawn for path in figure.paths]
        if removed := _files.replace_list(out, paths):
            skipped.append(f"{removed} files of an earlier report were removed from '{out}'.")
    except OSError as error:
        raise unwritable(out, error) from None
    return Report(records, own, shown, [*notes, *skipped], regressions, paths)


def _plot_names(plots: Sequence[str] | None) -> list[str]:
    from questbench import registry
    from questbench.report.plots import _base

    known = _base.names()
    for name in plots or []:
        if name not in known:
            raise registry.unknown("plot", name, known)
    return known if plots is None else list(plots)


def _draw(
    records: list[ResultRecord],
    manifests: Mapping[str, RunManifest],
    names: Sequence[str],
    out: Path,
    *,
    join: bool,
) -> tuple[list[Drawn], list[str]]:
    """Figures of every kind's cells, and why some plots were skipped."""
    from questbench import registry
    from questbench.report.frame import cell_frame, input_columns
    from questbench.report.plots import _base

    drawn: list[Drawn] = []
    skipped: list[str] = []
    frames: dict[str, tuple[Any, list[str]]] = {}
    for kind in dict.fromkeys(record.kind for record in records):
        chosen = [record for record in records if record.kind == kind]
        frame = cell_frame(chosen, manifests, join=join)
        frames[kind] = frame, input_columns(frame, chosen)
    own = set(names) - set(registry.foreign(_base.PACKAGE))
    for name in names:
        try:
            needed = _base.load(name).KIND
            if needed not in frames:
                skipped.append(f"Plot {name} was skipped: no results of '{needed}'.")
                continue
            draw: Callable[[], list[Drawn]] = functools.partial(list, _base.draw(name, *frames[needed], out))
            # A figure of ours that fails is a bug and says so; one of another package costs itself alone.
            drawn += draw() if name in own else registry.call("plot", name, draw)
        except registry.PluginError as error:
            skipped.append(f"Plot {name} was skipped. {error.message}")
        except _base.NothingToDraw as reason:
            skipped.append(f"Plot {name} was skipped: {reason}.")
    return drawn, skipped
