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
from typing import IO, Any

from questbench.errors import PrerequisiteError

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


def parse(line: str | bytes) -> dict[str, Any]:
    """A line's JSON object.

    Raises:
        ValueError: it is not one.
    """
    data = json.loads(line)
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    return data


def read_commits(folder: Path) -> list[Commit] | None:
    """Lines of the journal, a torn last one left out; ``None`` where there is no journal.

    Raises:
        PrerequisiteError: a line in the middle cannot be read.
    """
    file = folder / JOURNAL
    if not file.is_file():
        return None
    commits = []
    whole, _, _torn = file.read_bytes().rpartition(b"\n")
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            data = parse(line)
            ends = int(data["records_end"]), int(data["samples_end"])
            commits.append(Commit(*ends, tuple(data["done"]), tuple(data["failed"]), int(data.get("prefills", 0))))
        except (ValueError, KeyError, TypeError) as error:
            message = f"{file}, line {number}: {error!r}."
            hint = f"Remove {JOURNAL}: all records are then read as they stand, and the run cannot be resumed."
            raise PrerequisiteError(message, hint) from None
    return commits


def read_lines(folder: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of ``records.jsonl`` or ``samples.jsonl``: no cell in flight, no torn last line."""
    file = folder / name
    data = file.read_bytes() if file.is_file() else b""
    commits = read_commits(folder)
    if commits is not None:
        end = commits[-1].end(name) if commits else 0
        # Lengths that do not fit mean that somebody edited the file: then every line counts.
        if _fits(data, end):
            data = data[:end]
    whole, _, torn = data.rpartition(b"\n")
    for number, line in enumerate(whole.split(b"\n"), start=1):
        if line.strip():
            yield number, line
    try:
        parse(torn)
    except ValueError:
        return
    yield data.count(b"\n") + 1, torn  # complete, only its newline is missing


def recover(folder: Path) -> list[Commit]:
    """Cut off everything that no whole cell owns. The caller holds the lock.

    Raises:
        PrerequisiteError: the files do not fit the journal.
    """
    commits = read_commits(folder) or []
    last = commits[-1] if commits else Commit()
    for name in (RECORDS, SAMPLES):
        file = folder / name
        data = file.read_bytes() if file.is_file() else b""
        if not _fits(data, last.end(name)):
            message = f"{file} was changed since questbench wrote it, so '{folder}' cannot be resumed."
            raise PrerequisiteError(message, "Start a new run without --resume; report still reads this one.")
        if len(data) > last.end(name):
            os.truncate(file, last.end(name))
    journal = folder / JOURNAL
    if journal.is_file():
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
    return commits


def lock(folder: Path) -> IO[str]:
    """Take the folder for this process; closing the file, or dying, gives it back.

    Raises:
        PrerequisiteError: another process has it.
    """
    file = (folder / LOCK).open("a")
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
