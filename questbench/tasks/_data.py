"""Tasks on data that questbench does not ship: where it is looked for, what is checked, and what is said if it is not.

``--data`` names a file (.jsonl, .json, .parquet, .zip, .txt, .md), a folder, ``pip:NAME``, which is what an installed
package carries, or ``hf:OWNER/NAME[@REVISION]``, which is a folder too: a snapshot of the hub's repository, of which
only the files that the task can use are fetched, never code.
Nothing is fetched unless ``--online`` says so.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from questbench.errors import PrerequisiteError, UsageError
from questbench.tasks._base import Task
from questbench.tasks._data_files import Place, locate
from questbench.tasks._data_schema import Schema, check
from questbench.tasks._data_table import Table, read


@dataclass(frozen=True)
class Fetch:
    """What to get where, for the message of a task that has no data."""

    what: str
    """File names and size."""
    url: str = ""
    """Where a browser or wget gets it; empty where it has to be generated."""
    hub: str = ""
    """What ``--data`` takes instead, with --online."""
    how: str = ""
    """How to make it, where there is no URL."""


@dataclass(frozen=True)
class DataTask(Task):
    """A task whose samples are rows of a table. Subclasses name the files, their schemas and what to fetch."""

    data: str | None = None
    """Where the data is: what ``--data`` gives."""
    sha256: str = ""
    """Refuse any other file: the SHA-256 that it must have, or its first 8 or more digits."""
    online: bool = False
    """Fetch from the hub what is not there."""

    required: ClassVar[bool] = True
    """Whether there is nothing to run without ``--data``."""
    default_samples: ClassVar[int] = 500
    """At most so many; the rows there are if they are fewer."""
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Names for several sets at once -> the sets. The default of the field ``set`` may be one of them."""
    known: ClassVar[Mapping[str, str]] = {}
    """Published SHA-256 of upstream files -> what that file is; another file is used as well, and says so."""

    @classmethod
    def expand(cls, name: str, settings: str) -> list[str]:
        """Specs of single sets, where the task has sets: ``set=a+b`` and groups become several."""
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        if "set" not in fields:
            return [f"{name}:{settings}" if settings else name]
        parts = settings.split(":") if settings else []
        chosen = next((part.partition("=")[2] for part in parts if part.startswith("set=")), str(fields["set"]))
        others = [part for part in parts if not part.startswith("set=")]
        sets = [one for item in chosen.split("+") for one in cls.groups.get(item, (item,))]
        return [":".join([name, f"set={one}", *others]) for one in sets]

    @abstractmethod
    def fetch(self) -> Fetch:
        """What to get where."""

    @abstractmethod
    def patterns(self, length: int) -> tuple[str, ...]:
        """Files that hold this task's rows, below a folder or in a zip file; the first that is there is used."""

    @abstractmethod
    def schemas(self) -> tuple[Schema, ...]:
        """Columns that rows must have, in each of the forms in which the data is around."""

    def keep(self, row: Mapping[str, Any], where: str) -> bool:
        """Whether a row belongs to this task; a file may hold those of others.

        Args:
            where: names file and row, for messages.

        Raises:
            PrerequisiteError: the row belongs here and cannot be used.
        """
        del row, where
        return True

    def prepare(self, table: Table) -> Table:
        """Unpack a table whose rows are not yet samples; each row is checked afterwards."""
        return table

    def place(self, length: int) -> Place:
        """The files of this task.

        Raises:
            PrerequisiteError: there are none; the message says what to fetch.
        """
        if not self.data:
            raise self._missing(f"{self.label} needs data, which questbench does not ship")
        place = locate(self.data, self.patterns(length), online=self.online)
        if place is None:
            names = list(dict.fromkeys(pattern.rpartition("!")[2] for pattern in self.patterns(length)))
            wanted = ", ".join(names[:4] + ["..."] * (len(names) > 4))
            raise self._missing(f"{self.data} holds no data for {self.label} (looked for {wanted})")
        return place

    def table(self, length: int) -> Table:
        """Checked rows of this task; read once per process.

        Raises:
            PrerequisiteError: missing, broken, or not of the schema; the message names file, row and column.
        """
        place = self.place(length)
        if self.sha256 and not place.sha256.startswith(self.sha256.lower()):
            raise PrerequisiteError(
                f"{place.name} has SHA-256 {place.sha256}, not {self.sha256}.",
                "Download the file again, or leave sha256= out.",
            )
        return _table(self, place)

    @property
    def reads(self) -> bool:
        """Whether this run of the task is on data."""
        return self.required or bool(self.data)

    @property
    def label(self) -> str:
        """How messages name the task: as the user does."""
        return self.name

    def samples(self, asked: int | None, length: int) -> int:
        """All rows by default.

        Raises:
            UsageError: there are fewer than asked for.
            PrerequisiteError: the data is missing or broken.
        """
        table = self.table(length)
        if asked is not None and asked > len(table):
            raise UsageError(
                f"{self.label} has {len(table):,} samples in {table.name}, not {asked:,}.",
                f"Use --samples {len(table)} or fewer.",
            )
        return asked or min(self.default_samples, len(table))

    def row(self, index: int, length: int) -> tuple[Mapping[str, Any], dict[str, Any]]:
        """Row ``index`` and, for ``Sample.meta``, where it came from."""
        table = self.table(length)
        if index >= len(table):
            raise UsageError(
                f"{self.label} has {len(table):,} samples in {table.name}; there is no number {index:,}.",
                f"Use --samples {len(table)} or fewer.",
            )
        return table[index], {"data": self.origin(table)}

    def origin(self, table: Table) -> dict[str, Any]:
        """File, checksum and number of rows, as records keep them."""
        found = {"file": table.name, "sha256": table.sha256, "rows": len(table)}
        return found | ({"upstream": self.known.get(table.sha256, "not the known file")} if self.known else {})

    def _missing(self, message: str) -> PrerequisiteError:
        fetch = self.fetch()
        steps = [f"download {fetch.url} and name it: --data FILE"] if fetch.url else []
        if fetch.how:
            steps.append(fetch.how)
        if fetch.hub:
            steps.append(f"with network: --data {fetch.hub} --online")
        text = "; or ".join(steps)
        return PrerequisiteError(f"{message}: {fetch.what}.", text[0].upper() + text[1:] + ".")


_tables: dict[tuple[object, ...], Table] = {}


def _table(task: DataTask, place: Place) -> Table:
    """The table of a task at a place, from memory if the files are those that were read."""
    key = (type(task), task.label, place)
    if key not in _tables:
        table = task.prepare(read(place))
        check(table, task.schemas(), task.label)
        kept = [index for index in range(len(table)) if task.keep(table[index], table.where(index))]
        if not kept:
            raise PrerequisiteError(
                f"{table.name} has {len(table):,} rows, none of them for {task.label}.",
                "Name another file with --data.",
            )
        while len(_tables) >= 8:  # A table of 128k-token prompts is half a gigabyte.
            del _tables[next(iter(_tables))]
        _tables[key] = table if len(kept) == len(table) else table.select(kept)
    return _tables[key]


def data_for(name: str, data: Mapping[str, str]) -> str | None:
    """What ``--data`` says for the task ``name``: its own entry, or the one for all, ``*``."""
    return data.get(name, data.get("*"))


def check_use(names: Sequence[tuple[str, bool]], data: Mapping[str, str]) -> None:
    """Refuse ``--data`` that no task of the run would read.

    Args:
        names: name of each task, and whether it takes data.

    Raises:
        UsageError: naming what takes data.
    """
    takers = {name for name, takes in names if takes}
    for name in data:
        if name != "*" and name not in takers:
            raise UsageError(
                f"--data {name}=...: {name} is no task of this run that takes data.",
                f"Tasks of this run that do: {', '.join(sorted(takers)) or 'none'}.",
            )
    if data and not takers:
        raise UsageError("--data is given, but no task of this run takes data.", "Leave --data out.")
