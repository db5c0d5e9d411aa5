"""One escape function for each output: names come from files, models and command lines, and may hold anything.

What each returns shows the text as it is: it cannot open a tag, a link, a heading, a macro or a terminal's control
sequence. Control characters become visible (an escape character is shown as ``\\x1b``) in all of them.
"""

from __future__ import annotations

import html as _html
import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Controls of C0 and C1, of the direction of writing, and halves of characters; tabs and line ends are not meant."""
_BLOCK = re.compile(r"^(\s*)(?:(#{1,6}|[-+])(?=\s|$)|(\d{1,9})([.)])(?=\s|$)|(?=[-=~]{2,}\s*$))")
"""What begins a heading, a list or a rule where it stands first."""
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "—": "---",
    "–": "--",
    "±": r"\ensuremath{\pm}",
    "»": r"\guillemotright{}",
}


def terminal(text: str) -> str:
    """For a terminal: line ends and tabs stay, other control characters are written out."""
    return _CONTROL.sub(_written, text)


def markdown(text: str) -> str:
    """For one line of Markdown, a cell of a table included."""
    text = terminal(text).replace("\n", " ").replace("\t", " ")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`|_*])", r"\\\1", text)
    # A bracket alone is no link: intervals stay readable in the source.
    text = re.sub(r"\](?=[(\[:])", r"\]", text).replace("~~", r"\~\~").replace("![", r"!\[")
    return _BLOCK.sub(_literal, text)


def html(text: str) -> str:
    """For HTML, inside elements and in quoted attributes."""
    return _html.escape(terminal(text)).replace("\n", "<br>")


def latex(text: str) -> str:
    """For LaTeX, outside of formulas."""
    return "".join(_LATEX.get(character, character) for character in terminal(text).replace("\n", " "))


def _written(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _literal(found: re.Match[str]) -> str:
    space, sign, number, point = found.groups()
    return f"{space}\\{sign}" if sign else f"{space}{number}\\{point}" if number else f"{space}\\"
