"""Names may hold anything: no output takes them for markup, links, formulas or terminal controls."""

from __future__ import annotations

import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import golden
import pytest
from rich.console import Console

from questbench import report
from questbench.report import escape
from questbench.report.render import Cell, Table, to_rich

EVIL = "$x<script>alert(1)</script>[a](javascript:alert(1))`b`*c*_d_|e|\x1b]0;owned\x07\u202e\n# heading $"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>", "&lt;script&gt;"),
        ("[a](javascript:b)", "[a\\](javascript:b)"),
        ("![a](b)", "!\\[a\\](b)"),
        ("[a]: b", "[a\\]: b"),
        ("# a", "\\# a"),
        ("- a", "\\- a"),
        ("1. a", "1\\. a"),
        ("---", "\\---"),
        ("a\n# b", "a # b"),
        ("a|b_c*d`e", "a\\|b\\_c\\*d\\`e"),
        ("&lt;", "&amp;lt;"),
        ("-28.0 [-40.0, -15.0]", "-28.0 [-40.0, -15.0]"),
        ("\x1b[2J", "\\\\x1b[2J"),
    ],
)
def test_markdown(text: str, shown: str) -> None:
    assert escape.markdown(text) == shown


def test_terminal_controls_become_visible() -> None:
    assert escape.terminal("a\x1b[31mb\x07\x9b\u202e\ud800\nc\td") == "a\\x1b[31mb\\x07\\x9b\\u202e\\ud800\nc\td"
    console = Console(width=80, file=io.StringIO())
    console.print(to_rich(Table("t\x1b[2J", ["\x1b]0;x\x07"], rows=[[Cell("\x1b[1A")]], setup=["\x9b"])))
    assert isinstance(console.file, io.StringIO)
    assert not set(console.file.getvalue()) & set("\x1b\x07\x9b")


def test_latex() -> None:
    assert escape.latex("a_b 50% {x} $y$ \\z~^#&") == (
        r"a\_b 50\% \{x\} \$y\$ \textbackslash{}z\textasciitilde{}\textasciicircum{}\#\&"
    )


def test_html() -> None:
    assert escape.html("<a href='x'>&\n\x1b") == "&lt;a href=&#x27;x&#x27;&gt;&amp;<br>\\x1b"


def test_a_report_of_evil_names(tmp_path: Path) -> None:
    """In the card, titles, captions, cells and the list of runs; figures are drawn all the same."""
    environment = {**golden.ENVIRONMENT, "machine": EVIL, "os": EVIL, "packages": {"torch": EVIL}}
    records = [
        dataclasses.replace(record, params={**record.params, "model": EVIL, "task": "passkey" + EVIL})
        for record in golden.accuracy((64,))
    ]
    golden.write_run(tmp_path, records, kind="accuracy", environment=environment)
    made = report.build(results=tmp_path, formats=["md", "html", "csv", "latex"])
    assert sum(path.suffix == ".png" for path in made.paths) == 3
    text = (tmp_path / "report" / "report.md").read_text()
    for part in ("<script", "\n# heading", "\x1b", "\u202e", "\x07"):
        assert part not in text
    assert not re.search(r"(?<!\\)\]\(javascript", text)

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag != "script"
            assert not any("javascript" in (value or "") for name, value in attrs if name == "href")

    page = (tmp_path / "report" / "report.html").read_text()
    Tags().feed(page)
    assert "\x1b" not in page


def test_a_dollar_and_a_long_path_are_no_obstacle(tmp_path: Path) -> None:
    paths = ["/models/" + "very$long_" * 26 + end for end in ("a", "b")]
    assert all(len(path) > 260 for path in paths)
    records = [record for path in paths for record in golden.accuracy((64, 256), model=path)]
    golden.write_run(tmp_path, records, kind="accuracy")
    made = report.build(results=tmp_path, plots=["accuracy_by_budget"])
    figures = [path for path in made.paths if path.suffix == ".png"]
    assert len(figures) == len({path.name for path in figures}) == 2
    assert all(len(path.name) < 130 for path in figures)
