"""A table that knows its title, set-up, footnotes and warnings, and three ways to show it: rich, Markdown, HTML."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING

from questbench.report import escape

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

NONE = "—"
"""Shown where there is no value."""
WORDS = 30
"""Characters that a column of words needs; longer texts are broken into lines."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One text of a table."""

    text: str
    best: bool = False
    """Shown in bold."""


@dataclasses.dataclass
class Table:
    """What is shown; how is for the renderers."""

    title: str
    columns: list[str]
    """Headers, with units in them."""
    text_columns: frozenset[str] = frozenset()
    """Headers of columns that hold words: left-aligned, all others are right-aligned."""
    rows: list[list[Cell]] = dataclasses.field(default_factory=list)
    setup: list[str] = dataclasses.field(default_factory=list)
    """What all rows have in common, one sentence or list per entry."""
    about: dict[str, str] = dataclasses.field(default_factory=dict)
    """Header -> what stands in that column; said below the table as long as the column is there."""
    footnotes: list[str] = dataclasses.field(default_factory=list)
    """Texts that ``[1]``, ``[2]`` ... in the cells point to."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Remarks that belong under the table."""
    warnings: list[str] = dataclasses.field(default_factory=list)
    """Why some numbers may not be trusted."""
    optional: tuple[str, ...] = ()
    """Columns that a narrow terminal may leave out, the first one first."""
    keys: int = 0
    """Leading columns that name a block; a line divides blocks in the terminal."""

    def __post_init__(self) -> None:
        """Set-up lines of which nothing is known are empty, and are left out."""
        self.setup = [line for line in self.setup if line]

    def mark(self, text: str) -> str:
        """The marker of a footnote, which is added if it is new."""
        if text not in self.footnotes:
            self.footnotes.append(text)
        return f"[{self.footnotes.index(text) + 1}]"

    def without_empty_columns(self) -> Table:
        """The same table without columns in which no row has a value."""
        used = [index for index in range(len(self.columns)) if any(row[index].text != NONE for row in self.rows)]
        return self._keep(used)

    def fitting(self, width: int) -> tuple[Table, list[str]]:
        """The table without as many optional columns as it takes to fit, and the headers left out."""
        table, hidden = self, []
        for header in self.optional:
            if table.width() <= width:
                break
            if header in table.columns:
                table = table._keep([index for index, name in enumerate(table.columns) if name != header])
                hidden.append(header.replace("\n", " "))
        return table, hidden

    def width(self) -> int:
        """Characters of the widest line in a terminal, two between columns; long words may be broken into lines."""
        widths = [max(map(len, header.split("\n"))) for header in self.columns]
        most = [WORDS if header in self.text_columns else math.inf for header in self.columns]
        for row in self.rows:
            lengths = [min(len(cell.text), limit) for cell, limit in zip(row, most, strict=True)]
            widths = [max(width, int(length)) for width, length in zip(widths, lengths, strict=True)]
        return sum(widths) + 2 * len(widths)

    def _keep(self, indices: list[int]) -> Table:
        """These columns only, and the footnotes that they still point to, numbered anew."""
        rows = [[row[index] for index in indices] for row in self.rows]
        used = {int(found[2]) for row in rows for cell in row if (found := _MARK.search(cell.text))}
        kept = [number for number in range(1, len(self.footnotes) + 1) if number in used]
        if len(kept) < len(self.footnotes):
            new = {str(old): number for number, old in enumerate(kept, start=1)}

            def renumbered(found: re.Match[str]) -> str:
                return f"{found[1]}[{new.get(found[2], found[2])}]"

            rows = [[dataclasses.replace(cell, text=_MARK.sub(renumbered, cell.text)) for cell in row] for row in rows]
        footnotes = [self.footnotes[number - 1] for number in kept]
        columns = [self.columns[index] for index in indices]
        return dataclasses.replace(self, columns=columns, rows=rows, footnotes=footnotes)

    def explained(self) -> list[str]:
        """The set-up, and what the columns mean that are there."""
        return [*self.setup, *dict.fromkeys(self.about[header] for header in self.columns if header in self.about)]

    def below(self) -> list[str]:
        """Lines under the table."""
        notes = [f"[{number}] {text}" for number, text in enumerate(self.footnotes, start=1)]
        return notes + self.notes + [f"Warning: {text}" for text in self.warnings]


_MARK = re.compile(r"(^|\s)\[(\d+)\]$")
"""The marker of a footnote, at the end of a cell."""


@dataclasses.dataclass(frozen=True)
class ForTerminal:
    """A rich renderable that leaves out columns, and says so, where the terminal is too narrow for all of them."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Called by rich with the width there is."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text as RichText

        def shown_text(text: str, style: str = "") -> RichText:
            return RichText(escape.terminal(text), style=style)

        table, hidden = self.table.fitting(options.max_width)
        yield shown_text(table.title, style="bold")
        shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for header in table.columns:
            left = header in table.text_columns
            shown.add_column(shown_text(header), justify="left" if left else "right", overflow="fold")
        for number, row in enumerate(table.rows, start=1):
            following = table.rows[number][: table.keys] if number < len(table.rows) else row[: table.keys]
            cells = [shown_text(cell.text, style="bold" if cell.best else "") for cell in row]
            shown.add_row(*cells, end_section=table.keys > 0 and row[: table.keys] != following)
        yield shown
        yield from (shown_text(line, style="dim") for line in table.explained())
        yield from (shown_text(line) for line in table.below())
        if hidden:
            yield shown_text(f"Left out for lack of width: {', '.join(hidden)}. COLUMNS=200 shows more.", style="dim")
        yield shown_text("")


def to_rich(table: Table) -> RenderableType:
    """For the terminal."""
    return ForTerminal(table)


def to_markdown(table: Table) -> str:
    """For ``report.md``; renders on code hosts."""
    lines = [f"### {escape.markdown(table.title)}", ""]
    lines += [f"{escape.markdown(line)}  " for line in table.explained()] + [""]
    lines.append("| " + " | ".join(escape.markdown(header) for header in table.columns) + " |")
    lines.append("|" + "|".join(":--" if header in table.text_columns else "--:" for header in table.columns) + "|")
    for row in table.rows:
        cells = [f"**{escape.markdown(cell.text)}**" if cell.best else escape.markdown(cell.text) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [""] + [f"{escape.markdown(line)}  " for line in table.below()]
    return "\n".join(lines).rstrip() + "\n"


def to_html(table: Table, level: int = 3) -> str:
    """For ``report.html``."""
    parts = [f"<h{level}>{escape.html(table.title)}</h{level}>"]
    parts += [f'<p class="setup">{escape.html(line)}</p>' for line in table.explained()]
    parts.append('<div class="table"><table><thead><tr>')
    parts += [f"<th{_class(table, header)}>{escape.html(header)}</th>" for header in table.columns]
    parts.append("</tr></thead><tbody>")
    for row in table.rows:
        parts.append("<tr>")
        for header, cell in zip(table.columns, row, strict=True):
            text = f"<strong>{escape.html(cell.text)}</strong>" if cell.best else escape.html(cell.text)
            parts.append(f"<td{_class(table, header)}>{text}</td>")
        parts.append("</tr>")
    parts.append("</tbody></table></div>")
    parts += [f'<p class="note">{escape.html(line)}</p>' for line in table.below()]
    return "\n".join(parts)


def _class(table: Table, header: str) -> str:
    return ' class="text"' if header in table.text_columns else ""
