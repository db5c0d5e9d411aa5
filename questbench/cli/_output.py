"""Everything the command line shows: data goes to stdout, conversation to stderr. rich is imported when needed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from questbench.records.schema import ResultRecord
    from questbench.report.render import Table

PIPE_WIDTH = 160
"""Width of tables that are written to a file or a pipe, where there is no terminal to ask."""


class Output:
    """Shows results and talks to the user.

    Args:
        json: stdout carries JSON lines and no tables.
    """

    def __init__(self, *, json: bool = False) -> None:
        self.json = json

    def line(self, text: str) -> None:
        """One line of data."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def records(self, records: Iterable[ResultRecord]) -> None:
        """Records as they are stored, under ``--json`` only."""
        if self.json:
            for record in records:
                self.line(record.to_json())

    def tables(self, tables: Iterable[Table]) -> None:
        """Tables, unless ``--json``."""
        if not self.json:
            from questbench.report.render import to_rich

            console = _stdout()
            for table in tables:
                console.print(to_rich(table))

    def say(self, text: str) -> None:
        """A remark for the user."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def error(self, message: str, hint: str | None = None) -> None:
        """What went wrong and why, and the next step."""
        self.say(f"error: {message}")
        if hint:
            self.say(f"next:  {hint}")

    def card(self, title: str, facts: Mapping[str, str]) -> None:
        """What is about to happen."""
        width = max(map(len, facts), default=0)
        self.say(title)
        for name, text in facts.items():
            self.say(f"  {name:<{width}}  {text}")
        self.say("")

    @contextlib.contextmanager
    def progress(self) -> Iterator[Callable[[int, int, str], None]]:
        """A progress bar for the block; silent in ``--json``, in CI and where stderr is no terminal."""
        if self.json or "CI" in os.environ or not sys.stderr.isatty():
            yield lambda done, total, estimate: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("starting", total=None)
            yield lambda done, total, estimate: bar.update(
                task, completed=done, total=total, description=estimate.replace("[", r"\[")
            )


def _stdout() -> Console:
    from rich.console import Console

    known = sys.stdout.isatty() or os.environ.get("COLUMNS")
    return Console(file=sys.stdout, width=None if known else PIPE_WIDTH, highlight=False)
