"""Which runs a report shows, and which it leaves out and why: nothing is left out silently."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from questbench import units
from questbench.errors import QuestbenchError
from questbench.records import store
from questbench.records.environment import machine
from questbench.records.schema import ResultRecord, RunManifest

NAMED = 3
"""Runs left out for the same reason that are named; more are counted."""


@dataclasses.dataclass
class Gathered:
    """Runs with results, oldest first."""

    manifests: dict[str, RunManifest]
    records: dict[str, list[ResultRecord]]
    """By run, newest per cell and metric of that run."""
    left_out: list[str]
    """Sentences: which runs are not here and why."""

    def all(self) -> list[ResultRecord]:
        """Records of all runs, every run whole."""
        return [record for records in self.records.values() for record in records]

    def joined(self) -> list[ResultRecord]:
        """Newest per machine, cell and metric: a newer run elsewhere does not replace one from here."""
        by_machine: dict[str, list[ResultRecord]] = {}
        for run, records in self.records.items():
            by_machine.setdefault(machine(self.manifests[run].environment), []).extend(records)
        return [record for records in by_machine.values() for record in store.newest_per_cell(records)]


def find(paths: Iterable[Path], results: Path) -> list[Path]:
    """Run folders that the user means: paths, or names of runs in ``results``.

    Raises:
        PrerequisiteError: one is neither.
    """
    found = []
    for path in paths:
        below = results / path
        found.append(below if not path.is_absolute() and not path.exists() and below.exists() else path)
    return store.expand(found)


def gather(folders: Sequence[Path], *, whole: bool) -> Gathered:
    """Read run folders; what cannot be read, is empty or is out of date is left out and named.

    Args:
        folders: oldest first.
        whole: keep runs although newer ones have all their cells.

    Raises:
        QuestbenchError: there are folders, and not one of them can be read.
    """
    found = Gathered({}, {}, [])
    reasons: dict[str, list[str]] = {}
    error: QuestbenchError | None = None
    for folder in folders:
        try:
            records = store.newest_per_cell(store.load([folder]))
            manifest = _manifest(folder, records)
        except QuestbenchError as raised:
            error = raised
            found.left_out.append(f"Run {folder.name} is left out: {raised.message.rstrip('.')}.")
            continue
        if not records:
            reasons.setdefault(_empty(manifest), []).append(folder.name)
        elif manifest.run in found.manifests:
            found.left_out.append(f"Run folder {folder.name} is left out: it is a copy of run {manifest.run}.")
        else:
            found.manifests[manifest.run] = manifest
            found.records[manifest.run] = [dataclasses.replace(record, run=manifest.run) for record in records]
    if error is not None and len(found.left_out) == len(folders):
        raise error
    if not whole:
        for run in _replaced(found):
            reasons.setdefault("newer runs have all their cells (give its name to show one)", []).append(run)
            del found.manifests[run], found.records[run]
    found.left_out += [_sentence(names, reason) for reason, names in reasons.items()]
    return found


def _manifest(folder: Path, records: Sequence[ResultRecord]) -> RunManifest:
    """The run's manifest; a bare ``records.jsonl`` has none and gets an empty one."""
    if (folder / "run.json").exists() or not records:
        return store.load_manifest(folder)
    return RunManifest(folder.name, records[0].kind, [], {}, {}, start="", end="")


def _empty(manifest: RunManifest) -> str:
    return "no results so far; not ended" if manifest.end is None else "no results"


def _replaced(found: Gathered) -> list[str]:
    """Runs whose every cell a newer run of the same machine measured again; a failure replaces no success."""
    newer: set[tuple[str, str, bool]] = set()
    names = []
    for run in reversed(list(found.records)):
        where = machine(found.manifests[run].environment)
        states: dict[str, bool] = {}
        for record in found.records[run]:
            states[record.cell()] = states.get(record.cell(), False) or record.status == "ok"
        # Where this run has no value either, a newer failure is as good.
        again = [
            (where, cell, True) in newer or (not ok and (where, cell, False) in newer) for cell, ok in states.items()
        ]
        if all(again):
            names.append(run)
        newer |= {(where, cell, ok) for cell, ok in states.items()}
    return names[::-1]


def _sentence(names: Sequence[str], reason: str) -> str:
    if len(names) == 1:
        return f"Run {names[0]} is left out: {reason.replace('all their', 'all its').replace('show one', 'show it')}."
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} runs are left out ({', '.join(names[:NAMED])}{more}): {reason}."


def state(manifest: RunManifest) -> str:
    """What a reader must know of a run that did not end well, or nothing."""
    if manifest.end is None:
        return "has not ended: these are its results so far"
    if manifest.exit_code == 130:
        return "was interrupted: these are the results it had"
    return f"ended early with exit code {manifest.exit_code}" if manifest.exit_code == 1 else ""


def load(manifest: RunManifest) -> str:
    """``3.1 on 2 cores``: load average before the run began; empty if unknown."""
    values = manifest.environment.get("load")
    processor = manifest.environment.get("cpu")
    known = processor if isinstance(processor, Mapping) else {}
    cores = known.get("quota_cores") or known.get("usable_cores") or known.get("logical_cores")
    if not isinstance(values, list) or not values or not isinstance(values[0], (int, float)):
        return ""
    return f"{values[0]:.1f}" + (f" on {units.counted(cores, 'core')}" if isinstance(cores, (int, float)) else "")


def commit(manifest: RunManifest | None) -> str:
    """The short commit of a run, ``+`` behind it if the checkout had changes."""
    git = (manifest.environment.get("git") if manifest else None) or {}
    return f"{str(git.get('commit', ''))[:10]}{'+' if git.get('dirty') else ''}" if git.get("commit") else "unknown"


def describe(manifest: RunManifest) -> str:
    """Name, commit and load in one line."""
    under = load(manifest)
    return f"{manifest.run} (commit {commit(manifest)}" + (f", load {under})" if under else ")")
