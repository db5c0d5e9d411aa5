"""What reports write, and a list of it: the next report in the same folder removes what it did not make again."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from questbench.report import escape
from questbench.report.render import Table

LIST = ".report-files"
"""File in the report's folder that names, one a line, the files which reports made there."""


def replace_list(out: Path, made: Iterable[Path]) -> int:
    """Remove what earlier reports made in ``out`` and this one did not; store the new list.

    Files that no report made are never touched: only what the list names, below ``out``, and only plain files.

    Returns:
        How many files were removed.
    """
    kept = {path.relative_to(out).as_posix() for path in made}
    listed = out / LIST
    earlier = listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.is_file() else []
    removed = 0
    for name in earlier:
        path = out / name
        if name in kept or not _own(out, path):
            continue
        path.unlink()
        removed += 1
        with contextlib.suppress(OSError):  # not empty
            if path.parent != out:
                path.parent.rmdir()
    listed.write_text("".join(f"{name}\n" for name in sorted(kept)), encoding="utf-8")
    return removed


def _own(out: Path, path: Path) -> bool:
    """Whether a listed file is a plain one in the report's own folders."""
    inside = path.is_file() and not path.is_symlink() and not path.parent.is_symlink()
    return inside and path.parent.resolve() in (out.resolve(), (out / "figures").resolve(), (out / "tables").resolve())


def write_tables(tables: Sequence[Table], out: Path, formats: Iterable[str]) -> list[Path]:
    """Every table as a file of its own for the formats ``csv`` and ``latex``, in ``tables/``; the paths written."""
    writers = {"csv": ("csv", _csv), "latex": ("tex", to_latex)}
    paths = []
    for name in formats:
        if name not in writers:
            continue
        suffix, writer = writers[name]
        for number, table in enumerate(tables, start=1):
            words = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
            path = out / "tables" / f"{number:02}-{words[:60].rstrip('-')}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(writer(table), encoding="utf-8", newline="")
            paths.append(path)
    return paths


def _csv(table: Table) -> str:
    import io

    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([escape.terminal(header).replace("\n", " ") for header in table.columns])
    writer.writerows([escape.terminal(cell.text).replace("\n", " ") for cell in row] for row in table.rows)
    return file.getvalue()


def to_latex(table: Table) -> str:
    """A ``table`` environment for a paper that loads the package booktabs; what stands below comes as comments."""
    columns = "".join("l" if header in table.text_columns else "r" for header in table.columns)
    lines = [r"\begin{table}", r"  \centering\small", f"  \\caption{{{escape.latex(table.title)}}}"]
    lines += [f"  \\begin{{tabular}}{{{columns}}}", r"    \toprule"]
    lines += ["    " + " & ".join(map(escape.latex, table.columns)) + r" \\", r"    \midrule"]
    for row in table.rows:
        cells = [escape.latex(cell.text) for cell in row]
        shown = [f"\\textbf{{{text}}}" if cell.best else text for text, cell in zip(cells, row, strict=True)]
        # A bracket at the start of a row would be read as the argument of the line end above it.
        lines.append("    " + ("{}" if shown and shown[0].startswith("[") else "") + " & ".join(shown) + r" \\")
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    notes = [escape.terminal(line).replace("\n", " ") for line in [*table.setup, *table.below()]]
    return "\n".join([*(f"% {note}" for note in notes), *lines]) + "\n"
