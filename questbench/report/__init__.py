"""Tables and figures from stored records alone: nothing here measures, and nothing here imports torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from questbench.errors import ExitCode, PrerequisiteError, UsageError
from questbench.records import store
from questbench.records.environment import machine
from questbench.records.schema import ResultRecord, RunManifest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from questbench.report.plots._base import Drawn
    from questbench.report.render import Table

FORMATS = ("md", "html")


@dataclasses.dataclass
class Report:
    """What :func:`build` made."""

    records: list[ResultRecord]
    """Newest per machine, cell and metric."""
    tables: list[Table]
    comparison: list[Table]
    notes: list[str]
    """Sentences for the reader: skipped plots, missing counterparts."""
    regressions: list[str]
    """What became significantly worse; the exit code says so too."""
    paths: list[Path]
    """Files written."""

    @property
    def exit_code(self) -> ExitCode:
        """``REGRESSION`` if a comparison found one."""
        return ExitCode.REGRESSION if self.regressions else ExitCode.OK

    def renderables(self) -> list[RenderableType]:
        """Tables for the terminal: the comparison if there is one, then ours."""
        from questbench.report.render import to_rich

        return [to_rich(table) for table in [*self.comparison, *self.tables]]


def build(
    runs: Sequence[Path] | None = None,
    out: Path | None = None,
    *,
    results: Path = Path("results"),
    compare: str | Path | None = None,
    plots: Sequence[str] | None = None,
    force: bool = False,
    formats: Sequence[str] = FORMATS,
) -> Report:
    """Write a report of stored runs.

    Args:
        runs: run folders, folders of runs or ``records.jsonl`` files; every run in ``results`` if ``None`` or empty.
        out: where to write; ``results/report`` if ``None``.
        results: the results folder.
        compare: ``paper``, one of its figures as ``paper:fig9``, or a baseline: a run folder or a folder of runs.
        plots: names of plots; all if ``None``, none if empty.
        force: compare with a baseline of another machine or data type all the same.
        formats: ``md`` and ``html``.

    Raises:
        UsageError: unknown plot, format or figure, or a comparison of different machines.
        PrerequisiteError: there is no run, or a file cannot be read or written.
    """
    from questbench.report import document
    from questbench.report.tables import tables

    if unknown := [name for name in formats if name not in FORMATS]:
        raise UsageError(f"Unknown report format '{unknown[0]}'. Known: {', '.join(FORMATS)}.", "Use: md,html")
    known = _plot_names(plots)
    out = out or results / "report"
    with_paper = isinstance(compare, str) and compare.partition(":")[0] == "paper"
    baseline = store.expand([Path(compare)]) if compare is not None and not with_paper else []
    folders = [folder for folder in _folders(runs, results) if runs or folder not in baseline]
    if not folders and not with_paper:
        raise PrerequisiteError(f"There is no run in '{results}'.", "Make one with: questbench kernel")
    manifests = _manifests([*folders, *baseline])
    records = newest(folders, manifests)

    shown: list[Table] = []
    notes: list[str] = []
    regressions: list[str] = []
    if with_paper:
        from questbench.report import paper

        only = [name for name in str(compare).partition(":")[2].split(",") if name]
        shown, notes = paper.compare(records, manifests, only)
    elif baseline:
        from questbench.report import compare as comparing

        found = comparing.compare(newest(baseline, manifests), records, manifests, force=force)
        shown, notes, regressions = found.tables, found.notes, found.regressions
        notes += [f"Regression: {text}" for text in regressions]

    _make(out)
    own = tables(records, manifests)
    drawn, skipped = _draw(records, manifests, known, out / "figures") if records else ([], [])
    used = [manifests[name] for name in dict.fromkeys(record.run for record in records) if name in manifests]
    try:
        made = document.Document(used, own, drawn, shown, [*notes, *skipped])
        paths = document.write(made, out, formats)
    except OSError as error:
        raise _unwritable(out, error) from None
    figures = [path for figure in drawn for path in figure.paths]
    return Report(records, own, shown, [*notes, *skipped], regressions, [*paths, *figures])


def show(records: Iterable[ResultRecord], manifest: RunManifest | None = None) -> list[RenderableType]:
    """Tables of fresh records for the terminal, as ``kernel`` and ``accuracy`` show them when they end."""
    from questbench.report.render import to_rich
    from questbench.report.tables import tables

    records = store.newest_per_cell(records)
    manifests = {manifest.run: manifest} if manifest else {}
    return [to_rich(table) for table in tables(records, manifests)]


def newest(folders: Sequence[Path], manifests: Mapping[str, RunManifest]) -> list[ResultRecord]:
    """Records of runs, newest per machine, cell and metric: a newer run elsewhere does not replace one from here."""
    by_machine: dict[str, list[ResultRecord]] = {}
    for record in store.load(folders) if folders else []:
        where = machine(manifests[record.run].environment) if record.run in manifests else ""
        by_machine.setdefault(where, []).append(record)
    return [record for records in by_machine.values() for record in store.newest_per_cell(records)]


def _folders(runs: Sequence[Path] | None, results: Path) -> list[Path]:
    return store.expand(runs) if runs else store.runs(results)


def _manifests(folders: Sequence[Path]) -> dict[str, RunManifest]:
    found = {}
    for folder in folders:
        if (folder / "run.json").is_file():
            manifest = store.load_manifest(folder)
            found[manifest.run] = manifest
    return found


def _plot_names(plots: Sequence[str] | None) -> list[str]:
    from questbench import registry
    from questbench.report.plots import _base

    known = _base.names()
    for name in plots or []:
        if name not in known:
            raise registry.unknown("plot", name, known)
    return known if plots is None else list(plots)


def _draw(
    records: list[ResultRecord], manifests: Mapping[str, RunManifest], names: Sequence[str], out: Path
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
        frame = cell_frame(chosen, manifests)
        frames[kind] = frame, input_columns(frame, chosen)
    own = set(names) - set(registry.foreign(_base.PACKAGE))
    for name in names:
        try:
            needed = _base.load(name).KIND
            if needed not in frames:
                skipped.append(f"Plot {name} was skipped: no results of '{needed}'.")
                continue
            draw = functools.partial(list, _base.draw(name, *frames[needed], out))
            # A figure of ours that fails is a bug and says so; one of another package costs itself alone.
            drawn += draw() if name in own else registry.call("plot", name, draw)
        except registry.PluginError as error:
            skipped.append(f"Plot {name} was skipped. {error.message}")
        except _base.NothingToDraw as reason:
            skipped.append(f"Plot {name} was skipped: {reason}.")
    return drawn, skipped


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(out, error) from None


def _unwritable(out: Path, error: OSError) -> PrerequisiteError:
    message = f"Cannot write to '{out}': {error.strerror or error}."
    return PrerequisiteError(message, "Name a folder you can write with --out DIR.")
