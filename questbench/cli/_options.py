"""Flags that several verbs share, and how their texts become values. Commas sweep; ``k`` is 1024."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from questbench import units
from questbench.errors import UsageError

AXES = "Axes (commas sweep)"
MACHINE = "Machine"
RUN = "Run"


def flag(*names: str, help: str, panel: str, metavar: str = "") -> Any:
    """A flag in a panel of the help page; one without ``metavar`` takes no value."""
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel)


Methods = Annotated[str, flag("--method", metavar="NAMES", help="Methods (see: ls methods).", panel=AXES)]
FIELD = "Set a parameter of all methods, or of one: quest.select_by=q_head. Commas sweep. Repeatable."
MethodArgs = Annotated[list[str] | None, flag("-M", metavar="NAME=VALUE", help=FIELD, panel=AXES)]
BUDGET = "KV entries that one query head may see in a step."
Budgets = Annotated[str, flag("--budget", "--token-budget", metavar="TOKENS", help=BUDGET, panel=AXES)]
PageSizes = Annotated[str, flag("--page-size", metavar="TOKENS", help="Tokens per page: 4, 8 ... 128.", panel=AXES)]
THREADS = "CPU threads (default: all cores)."
Threads = Annotated[str | None, flag("--threads", metavar="N", help=THREADS, panel=MACHINE)]
Device = Annotated[str, flag("--device", metavar="NAME", help="cpu or cuda.", panel=MACHINE)]
BACKEND = "Kernels (see: ls backends; default: the device's own)."
Backend = Annotated[str | None, flag("--backend", metavar="NAME", help=BACKEND, panel=MACHINE)]
Seed = Annotated[int, flag("--seed", metavar="N", help="Seed of everything random.", panel=RUN)]
Out = Annotated[Path, flag("--out", metavar="DIR", help="Folder that holds the run folders.", panel=RUN)]
TIME_LIMIT = "End the run after this time (90, 20m, 2h) with what is measured."
RESUME = "Continue a run, a folder or its name in --out; flags left out are those it was started with."
Resume = Annotated[Path | None, flag("--resume", metavar="DIR", help=RESUME, panel=RUN)]
Json = Annotated[bool, flag("--json", help="Print JSON lines on stdout instead of tables.", panel=RUN)]


def names(text: str, flag: str) -> list[str]:
    """``"dense,quest"`` -> ``["dense", "quest"]``, each once.

    Raises:
        UsageError: there is none.
    """
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise UsageError(f"{flag} names nothing.", "Write one or more names, separated by commas.")
    return found


def counts(text: str, flag: str) -> list[int]:
    """``"8k,32k"`` -> ``[8192, 32768]``, each once.

    Raises:
        UsageError: there is none, or one is not a whole number of 1 or more.
    """
    return list(dict.fromkeys(count(part, flag) for part in names(text, flag)))


def count(text: str, flag: str, *, least: int = 1) -> int:
    """``"4k"`` -> 4096.

    Raises:
        UsageError: it is not a whole number of ``least`` or more.
    """
    value = units.parse_count(text, what=f"value for {flag}")
    if value < least:
        raise UsageError(f"{flag} {text}: must be at least {least}.", f"Write {flag} {max(least, 1)} or more.")
    return value


def optional_count(text: str | None, flag: str, *, least: int = 1) -> int | None:
    """As :func:`count`; ``None`` stays ``None``."""
    return None if text is None else count(text, flag, least=least)


def optional_duration(text: str | None, flag: str) -> float | None:
    """``"20m"`` -> 1200.0; ``None`` stays ``None``.

    Raises:
        UsageError: it is no duration.
    """
    return None if text is None else units.parse_duration(text, what=f"duration for {flag}")


def pairs(texts: Sequence[str] | None) -> dict[str, str]:
    """``["a=1", "quest.b=2"]`` -> ``{"a": "1", "quest.b": "2"}``.

    Raises:
        UsageError: a text is not ``name=value``, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts or []:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise UsageError(f"-M '{text}' is not name=value.", "Write it as -M quest.select_by=q_head.")
        if name in found:
            raise UsageError(f"-M {name} is given twice.", "Give each field once.")
        found[name] = value
    return found


def data_sources(texts: Sequence[str] | None) -> dict[str, str]:
    """``["pg19=books", "LongBench"]`` -> ``{"pg19": "books", "*": "LongBench"}``; ``*`` is for all tasks.

    Raises:
        UsageError: a task has two sources, or a source is empty.
    """
    from questbench import registry

    tasks = registry.names("questbench.tasks") if any("=" in text for text in texts or []) else []
    found: dict[str, str] = {}
    for text in texts or []:
        name, equals, path = text.partition("=")
        if not equals or name not in tasks:  # a path may have an equals sign
            name, path = "*", text
        if not path.strip():
            raise UsageError(f"--data '{text}' names nothing.", "Write --data PATH, or --data TASK=PATH.")
        if name in found:
            raise UsageError(f"--data is given twice for {'all tasks' if name == '*' else name}.", "Give it once.")
        found[name] = path
    return found


def positive(value: float, flag: str) -> float:
    """The value.

    Raises:
        UsageError: it is not above 0.
    """
    if not 0 < value < float("inf"):
        raise UsageError(f"{flag} {value:g}: must be a number above 0.", f"Write {flag} 10.")
    return value


def not_negative(value: float, flag: str) -> float:
    """The value.

    Raises:
        UsageError: it is below 0.
    """
    if not 0 <= value < float("inf"):
        raise UsageError(f"{flag} {value:g}: must be a number of 0 or more.", f"Write {flag} 10.")
    return value
