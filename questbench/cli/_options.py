"""Flags that say where results go; all others are fields of a configuration (``questbench/flags.py``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from questbench.flags import RUN


def option(*names: str, help: str, metavar: str = "", panel: str = RUN) -> Any:
    """A flag in a panel of the help page; one without ``metavar`` takes no value."""
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel)


RESUME = (
    "Continue a run, a folder or its name in --out; flags left out are those it was started with. accuracy takes "
    "another --samples."
)
Out = Annotated[Path, option("--out", metavar="DIR", help="Folder that holds the run folders.")]
Resume = Annotated[Path | None, option("--resume", metavar="DIR", help=RESUME)]
Json = Annotated[bool, option("--json", help="Print JSON lines on stdout instead of tables.")]
