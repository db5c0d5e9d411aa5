"""The journal of a run folder: which cells are whole, and how long the other files were when they were.

``cells.jsonl`` gets one line after the lines of a cell have reached the disk. What lies beyond the lengths of its last
line belongs to a cell that was in flight.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from questbench.errors import PrerequisiteError
from questbench.records import fields, files, wants

RECORDS = "records.jsonl"
SAMPLES = "samples.jsonl"
JOURNAL = "cells.jsonl"
LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class Commit:
    """One line of the journal."""

    records_end: int = 0
    """Bytes of ``records.jsonl`` that are whole."""
    samples_end: int = 0
    """Bytes of ``samples.jsonl`` that are whole."""
    done: tuple[str, ...] = ()
    """Keys of cells that ended ``ok`` or ``skipped``."""
    failed: tuple[str, ...] = ()
    """Keys of cells with a ``failed`` record; they are run again."""
    prefills: int = 0
    """Dense prefills that this unit made."""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    def end(self, name: str) -> int:
        """The whole bytes of the file ``name``."""
        return self.records_end if name == RECORDS else self.samples_end


def read_commits(folder: Path) -> list[Commit] | None:
    """Lines of the journal, a torn last one left out; ``None`` where there is no journal.

    Raises:
        PrerequisiteError: a line cannot be read, or the lengths shrink from one line to the next.
    """
    file = folder / JOURNAL
    data = files.read(file)
    if data is None:
        return None
    commits: list[Commit] = []
    whole, _, _torn = data.rpartition(b"\n")
    last = Commit()
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            last = _commit(line, last)
        except ValueError as error:
            hint = f"Remove {JOURNAL}: all records are then read as they stand, and the run cannot be resumed."
            raise PrerequisiteError(f"{file}, line {number}: {error}.", hint) from None
        commits.append(last)
    return commits


def _commit(line: bytes, before: Commit) -> Commit:
    data = wants.parse(line)
    fields.check_commit(data)
    for name in ("records_end", "samples_end"):
        # The files only grow, so that the last line knows the lengths of all whole cells.
        if data[name] < getattr(before, name):
            raise ValueError(
                f"field '{name}' is {data[name]}, less than the {getattr(before, name)} of the line before: "
                "the lines are not in the order in which they were written"
            )
    texts = {name: tuple(data[name]) for name in ("done", "failed")}
    return Commit(data["records_end"], data["samples_end"], **texts, prefills=data.get("prefills", 0))


def read_lines(folder: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of ``records.jsonl`` or ``samples.jsonl``: no cell in flight, no torn last line.

    Raises:
        PrerequisiteError: the file or the journal cannot be read, or the file is gone.
    """
    file = folder / name
    found = files.read(file)
    data = found or b""
    commits = read_commits(folder)
    if commits is not None:
        end = commits[-1].end(name) if commits else 0
        if end and found is None:
            raise _gone(file, end)
        # Lengths that do not fit mean that somebody edited the file: then every line counts.
        if _fits(data, end):
            data = data[:end]
    whole, _, torn = data.rpartition(b"\n")
    for number, line in enumerate(whole.split(b"\n"), start=1):
        if line.strip():
            yield number, line
    try:
        wants.parse(torn)
    except ValueError:
        return
    yield data.count(b"\n") + 1, torn  # complete, only its newline is missing


def recover(folder: Path) -> list[Commit]:
    """Cut off everything that no whole cell owns. The caller holds the lock.

    All files are looked at before the first is cut, and none is cut below what the journal vouches for.

    Raises:
        PrerequisiteError: the files do not fit the journal.
        OSError: a file cannot be written.
    """
    commits = read_commits(folder)
    last = commits[-1] if commits else Commit()
    ends: dict[str, int] = {}
    for name in (RECORDS, SAMPLES):
        file = folder / name
        found = files.read(file)
        data, end = found or b"", last.end(name)
        if end and found is None:
            raise _gone(file, end)
        if commits is None and data:
            message = f"'{folder}' has no {JOURNAL}, so that nothing says which cells of {name} are whole."
            raise PrerequisiteError(message, "Start a new run without --resume; report still reads this one.")
        if not _fits(data, end):
            message = f"{file} was changed since questbench wrote it, so '{folder}' cannot be resumed."
            raise PrerequisiteError(message, "Start a new run without --resume; report still reads this one.")
        if len(data) > end:
            ends[name] = end
    journal = files.read(folder / JOURNAL)
    if journal is not None and not journal.endswith(b"\n"):
        ends[JOURNAL] = journal.rfind(b"\n") + 1
    # Opened before the first is cut: a link among them leaves all as they are.
    opened = {name: files.open_to_write(folder / name) for name in (RECORDS, SAMPLES, JOURNAL)}
    try:
        for name, end in ends.items():
            os.ftruncate(opened[name], end)
    finally:
        for descriptor in opened.values():
            os.close(descriptor)
    return commits or []


def _gone(file: Path, end: int) -> PrerequisiteError:
    message = f"{file} is missing, although {JOURNAL} knows {end:,} bytes of it."
    return PrerequisiteError(message, "Put the file back, or leave this run out.")


def lock(folder: Path) -> IO[str]:
    """Take the folder for this process; closing the file, or dying, gives it back.

    Raises:
        PrerequisiteError: another process has it.
    """
    file = os.fdopen(files.open_to_write(folder / LOCK), "a")
    try:
        import fcntl
    except ImportError:  # no such lock on this system
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        message = f"Another process is writing to '{folder}'."
        raise PrerequisiteError(message, "Wait for it, or start a new run without --resume.") from None
    except OSError:  # a file system without locks
        pass
    return file


def _fits(data: bytes, end: int) -> bool:
    return end == 0 or (len(data) >= end and data[end - 1 : end] == b"\n")
