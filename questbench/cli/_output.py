"""Everything the command line shows: results go to stdout, messages to stderr. rich is imported when needed."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from questbench.cli import _streams

if TYPE_CHECKING:
    from rich.console import RenderableType

    from questbench.records.schema import ResultRecord
    from questbench.report.render import Table

PIPE_WIDTH = 160
"""Width of tables that are written to a file or a pipe, where there is no terminal to ask."""
HALF_A_MINUTE = 30.0


class Output:
    """Shows results and talks to the user.

    Args:
        json: stdout carries JSON lines and no tables.
    """

    def __init__(self, *, json: bool = False) -> None:
        self.json = json

    def line(self, text: str) -> None:
        """One line of data."""
        _streams.write(sys.stdout, text + "\n")

    def records(self, records: Iterable[ResultRecord]) -> None:
        """Records as they are stored, under ``--json`` only."""
        if self.json:
            for record in records:
                self.line(record.to_json())

    def tables(self, tables: Iterable[Table]) -> None:
        """Tables, unless ``--json``."""
        if not self.json:
            from questbench.report.render import to_rich

            for table in tables:
                _streams.write(sys.stdout, _rendered(to_rich(table)))

    def say(self, text: str) -> None:
        """A remark for the user."""
        from questbench.report.escape import terminal

        _streams.write(sys.stderr, terminal(text) + "\n")

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
    def progress(self, every: float = HALF_A_MINUTE) -> Iterator[Callable[[int, int, str], None]]:
        """A progress bar for the block; where stderr is no terminal, and in CI, a line from time to time.

        Args:
            every: seconds between two lines.
        """
        if "CI" in os.environ or not sys.stderr.isatty():
            with self._lines(every) as told:
                yield told
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from questbench.report.escape import terminal

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("starting", total=None)
            yield lambda done, total, estimate: bar.update(
                task, completed=done, total=total, description=terminal(estimate).replace("[", r"\[")
            )

    @contextlib.contextmanager
    def _lines(self, every: float) -> Iterator[Callable[[int, int, str], None]]:
        """Says how far it is from a thread of its own, since one unit of work may take many minutes."""
        start, over = time.monotonic(), threading.Event()
        state = ["loading"]

        def tell() -> None:
            while not over.wait(every):
                minutes, seconds = divmod(int(time.monotonic() - start), 60)
                self.say(f"  {minutes}:{seconds:02}  {state[0]}")

        def told(done: int, total: int, estimate: str) -> None:
            state[0] = f"{done} of {total} done" + (f"; {estimate}" if estimate else "")

        thread = threading.Thread(target=tell, name="progress", daemon=True)
        thread.start()
        try:
            yield told
        finally:
            over.set()
            thread.join()


class _Page(io.StringIO):
    """Text for stdout that is not written yet: as wide, as coloured and of the same characters."""

    encoding = property(lambda self: getattr(sys.stdout, "encoding", None) or "utf-8")

    def isatty(self) -> bool:
        """Whether it will be read on a terminal."""
        return sys.stdout.isatty()


def _rendered(what: RenderableType) -> str:
    from rich.console import Console

    known = sys.stdout.isatty() or os.environ.get("COLUMNS")
    page = _Page()
    Console(file=page, width=None if known else PIPE_WIDTH, highlight=False).print(what)
    return page.getvalue()
