"""The one writer of a run folder: whole cells, durable when :meth:`RunWriter.write` returns."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from questbench.errors import PrerequisiteError
from questbench.records import files
from questbench.records.journal import JOURNAL, RECORDS, SAMPLES, Commit
from questbench.records.schema import ResultRecord, RunManifest, jsonable

MANIFEST = "run.json"
_TEMPORARY = f".{MANIFEST}."


class RunWriter:
    """Writes one run folder; made by ``store.create_run`` or ``store.resume``. Use it as a context manager.

    Attributes:
        path: the run folder.
        name: its name, which is stamped on every record as ``run``.
        manifest: what ``run.json`` says.
        finished: keys of cells that need not run again: every ``key`` given to :meth:`write` and every
            ``ResultRecord.cell()`` written, unless one of its records is ``failed``.
    """

    def __init__(self, path: Path, manifest: RunManifest, held: IO[str], commits: Sequence[Commit] = ()) -> None:
        self.path = path
        self.name = manifest.run
        self.manifest = manifest
        self.finished: set[str] = set()
        self._held = held
        self._records_end = commits[-1].records_end if commits else 0
        self._prefills = 0
        for commit in commits:
            self._remember(commit)
        self._files: dict[str, int] = {}
        try:
            for name in (RECORDS, SAMPLES, JOURNAL):
                self._files[name] = files.open_to_write(path / name)
        except OSError as error:
            self.close()
            raise unwritable(path, error) from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(
        self,
        records: Iterable[ResultRecord],
        *,
        key: str | None = None,
        samples: Iterable[Mapping[str, Any]] = (),
        prefills: int = 0,
    ) -> list[ResultRecord]:
        """Append all records and sample rows of one unit of work (mostly a cell) and make them durable.

        After a crash either all of them are there or none. Records of several ``ResultRecord.cell()`` identities that
        were measured together (stages, baselines, metrics) belong in one call.

        Args:
            records: the cell's records; their ``run`` is set to this run's name. None is fine if there is a ``key``.
            key: a name of the unit of work that the caller can work out before running it; it joins ``finished``.
            samples: rows for ``samples.jsonl``, after those that :meth:`samples` has taken.
            prefills: dense prefills that the unit made; summed up in the manifest.

        Returns:
            The records as they were stored.

        Raises:
            PrerequisiteError: the disk is full or the folder is gone.
        """
        stored = [dataclasses.replace(record, run=self.name) for record in records]
        self.samples(samples)
        # An interrupted call may have left bytes behind; a whole cell must not follow them.
        os.ftruncate(self._files[RECORDS], self._records_end)
        if stored:
            self._append(RECORDS, "".join(record.to_json() + "\n" for record in stored))
        failed = sorted({record.cell() for record in stored if record.status == "failed"})
        done = sorted({record.cell() for record in stored} - set(failed))
        if key is not None:
            (failed if failed else done).append(key)
        records_end, samples_end = (os.fstat(self._files[name]).st_size for name in (RECORDS, SAMPLES))
        commit = Commit(records_end, samples_end, tuple(done), tuple(failed), prefills)
        self._append(JOURNAL, commit.to_json() + "\n")
        self._records_end = records_end
        self._remember(commit)
        return stored

    def samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to ``samples.jsonl``; they count once the next :meth:`write` has committed their unit.

        Raises:
            ValueError: a value is NaN or infinite, which is no JSON.
        """
        text = "".join(_line(row) + "\n" for row in rows)
        if text:
            self._append(SAMPLES, text)

    def finish(self, exit_code: int | None = 0) -> None:
        """Note how the run ended and let go of the folder.

        Args:
            exit_code: what the process will exit with.
        """
        self.manifest.prefills = self._prefills or None
        self.manifest.end = now()
        self.manifest.exit_code = exit_code
        try:
            write_manifest(self.path, self.manifest)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the folder without noting an end, as a killed run would."""
        files, self._files = self._files, {}
        for descriptor in files.values():
            os.close(descriptor)
        self._held.close()

    def _append(self, name: str, text: str) -> None:
        data = memoryview(_bytes(text))
        try:
            while data:
                data = data[os.write(self._files[name], data) :]
            os.fsync(self._files[name])
        except OSError as error:  # a full disk, mostly
            kept = self._records_end or self.finished
            again = f"questbench {self.manifest.kind} --resume {shlex.quote(str(self.path))}"
            hint = f"Make room there, then: {again}" if kept else None
            raise unwritable(self.path, error, hint) from None

    def _remember(self, commit: Commit) -> None:
        self.finished.difference_update(commit.failed)
        self.finished.update(commit.done)
        self._prefills += commit.prefills


def _line(row: Mapping[str, Any]) -> str:
    """A row as strict JSON."""
    return json.dumps(row, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_manifest(folder: Path, manifest: RunManifest) -> None:
    """Replace ``run.json`` as a whole, so that a reader never sees half of it.

    Raises:
        PrerequisiteError: the folder cannot be written.
    """
    temporary = folder / f"{_TEMPORARY}{os.getpid()}"
    text = json.dumps(jsonable(dataclasses.asdict(manifest)), indent=2, ensure_ascii=False, default=str)
    try:
        clear_temporary(folder)
        descriptor = files.open_to_write(temporary, os.O_WRONLY | os.O_EXCL)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_bytes(text + "\n"))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(folder / MANIFEST)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise unwritable(folder, error) from None


def clear_temporary(folder: Path) -> None:
    """Remove what killed processes left of a manifest they were writing. The caller holds the lock."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        if path.name.removeprefix(_TEMPORARY).isdigit():
            path.unlink(missing_ok=True)


def _bytes(text: str) -> bytes:
    # A byte of a file name that is no UTF-8 is half of a surrogate pair in Python; its JSON escape keeps it.
    return text.encode("utf-8", "backslashreplace")


def unwritable(folder: Path, error: OSError, hint: str | None = None) -> PrerequisiteError:
    """The error for a folder that cannot be written.

    Args:
        hint: what to do about it; another folder if ``None``.
    """
    why = error.strerror or str(error)
    return PrerequisiteError(
        f"Cannot write to '{folder}': {why}.", hint or "Name a folder you can write with --out DIR."
    )


def now() -> str:
    """UTC time, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat()
