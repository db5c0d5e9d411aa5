"""Build tasks from ``name`` or ``name:field=value:field=value`` (commas separate tasks)."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from questbench import registry
from questbench._coerce import coerce
from questbench.errors import UsageError
from questbench.tasks._base import Task
from questbench.tasks._data import DataTask, data_for

PACKAGE = "questbench.tasks"


def make_task(spec: str, data: Mapping[str, str] | None = None, *, online: bool = False) -> Task:
    """A task with its parameters set.

    Args:
        data: where tasks on data find it, by name; ``*`` is for all.
        online: they may fetch it.

    Raises:
        UsageError: unknown task or parameter, or a value that the parameter does not take.
    """
    name, _, settings = spec.partition(":")
    kind = task_class(name.strip())
    task = with_settings(kind, name, settings) if settings else kind()
    if isinstance(task, DataTask):
        where = task.data or data_for(task.name, data or {})
        return dataclasses.replace(task, data=where, online=task.online or online)
    if online and hasattr(task, "online"):
        return dataclasses.replace(task, online=True)  # type: ignore[type-var]
    return task


def expand(specs: Sequence[str], *, online: bool = False) -> list[str]:
    """Specs of single sets, each once: of ``longbench:set=paper``, or ``longbench`` alone, its six, of ``set=a+b`` two.

    Raises:
        UsageError: unknown task or set.
    """
    found: list[str] = []
    for spec in specs:
        name, _, settings = spec.partition(":")
        kind = task_class(name.strip())
        found += kind.expand(name.strip(), settings, online=online)
    return list(dict.fromkeys(found))


def task_class(name: str) -> type[Task]:
    """The class of a task.

    Raises:
        UsageError: there is none of that name.
    """
    known = registry.names(PACKAGE)
    marked = [other for other in known if other.startswith(f"{name}@")]
    if marked and name not in known:
        raise UsageError(
            f"Task '{name}' is known with texts of our own only, and its name says so.",
            f"Use --task {', '.join(marked)}.",
        )
    return registry.load(PACKAGE, name, Task, kind="task")  # type: ignore[type-abstract]


def with_settings(kind: type[Task], name: str, settings: str) -> Task:
    """A task with parameters from a text: ``field=value:field=value``.

    Raises:
        UsageError: it has no such parameter, or one takes no such value.
    """
    hints = typing.get_type_hints(kind)
    names: list[str] = [item.name for item in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    chosen: dict[str, Any] = {}
    for setting in settings.split(":"):
        key, equals, text = setting.partition("=")
        if kind.first and not equals and not chosen:
            key, text = kind.first, setting
        if key in names and not text:
            raise UsageError(f"Parameter '{key}' of task '{name}' has no value.", f"Write --task {name}:{key}=VALUE.")
        if key not in names:
            raise UsageError(
                f"Task '{name}' has no parameter '{key}'.", f"Its parameters are: {', '.join(names) or 'none'}."
            )
        try:
            chosen[key] = coerce(text, hints[key])
        except ValueError as error:
            raise UsageError(f"--task {name}:{key}={text}: {error}.", "Look at: questbench ls tasks.") from None
    return kind(**chosen)
