"""A folder of modules is a registry: the file's name is the registered name.

Listing imports nothing. Loading imports one module and returns the single concrete subclass defined in it.
Entry points ``questbench.{methods,tasks,kernels,baselines,plots}`` add modules of other packages. What is wrong
with one becomes a :class:`PluginError` with the reason: it ends what asked for that plug-in, and nothing else.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from questbench.errors import PrerequisiteError, QuestbenchError, UsageError

T = TypeVar("T")
LISTED = {
    "method": "methods",
    "task": "tasks",
    "backend": "backends",
    "baseline": "baselines",
    "shape": "models",
    "plot": "plots",
}
"""Kinds of names that ``questbench ls`` knows, and what it calls them."""
CHECK = "questbench doctor"
"""The command that names everything that is broken."""


def _search_path(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ValueError(f"{package} is not a package")
    return list(importlib.import_module(package).__path__)


class PluginError(PrerequisiteError):
    """A plug-in that cannot be used; the message names it and says why."""


def _own(package: str) -> frozenset[str]:
    """Names of the files in the package's folders."""
    return _files(tuple((folder, _changed(folder)) for folder in _search_path(package)))


@functools.cache
def _files(folders: tuple[tuple[str, int], ...]) -> frozenset[str]:
    """Folders are read again when a file came or went: every method that is made asks for its name."""
    modules = pkgutil.iter_modules([folder for folder, _ in folders])
    return frozenset(module.name for module in modules if not module.name.startswith("_"))


def _changed(folder: str) -> int:
    try:
        return Path(folder).stat().st_mtime_ns
    except OSError:  # inside an archive, which does not change
        return 0


def _entry_points(package: str) -> dict[str, list[importlib.metadata.EntryPoint]]:
    """What other packages register, by name; more than one under a name cannot be told apart."""
    return _installed("questbench." + package.rsplit(".", 1)[-1], tuple(sys.path))


@functools.cache
def _installed(group: str, path: tuple[str, ...]) -> dict[str, list[importlib.metadata.EntryPoint]]:
    """The entry points of a group. Finding them reads a file of every installed package: once for a search path."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for point in importlib.metadata.entry_points(group=group):
        if point.value not in [other.value for other in found.get(point.name, [])]:
            found.setdefault(point.name, []).append(point)
    return found


def foreign(package: str) -> dict[str, str]:
    """Plug-ins of other packages that have a name of their own, and the module of each; imports none of them."""
    own = _own(package)
    return {
        name: points[0].value.partition(":")[0].strip()
        for name, points in _entry_points(package).items()
        if name not in own and len(points) == 1
    }


def refused(package: str) -> dict[str, str]:
    """Plug-ins of other packages that are not taken, and why."""
    own = _own(package)
    reasons = {}
    for name, points in _entry_points(package).items():
        values = " and ".join(point.value for point in points)
        if name in own:
            reasons[name] = f"{values} is not used: questbench itself has a '{name}'"
        elif len(points) > 1:
            reasons[name] = f"{values} are not used: they have the same name"
    return reasons


def names(package: str) -> list[str]:
    """Registered names of ``package`` (such as ``questbench.methods``), sorted; imports no plug-in."""
    return sorted(_own(package) | set(foreign(package)))


def unknown(kind: str, name: str, known: list[str]) -> UsageError:
    """The error for an unknown name: lists the known ones and guesses what was meant."""
    close = difflib.get_close_matches(name, known, n=1)
    guess = [f"Did you mean '{close[0]}'?"] if close else []
    more = [f"List them with: questbench ls {LISTED[kind]}"] if kind in LISTED else []
    return UsageError(
        f"Unknown {kind} '{name}'. Known: {', '.join(known)}.", " ".join(guess + more) or "Use one of them."
    )


def load_module(package: str, name: str, *, kind: str) -> ModuleType:
    """Import one plug-in module.

    Raises:
        UsageError: no plug-in of that name.
        PluginError: it cannot be imported.
    """
    known = names(package)
    if name not in known:
        if why := refused(package).get(name):
            raise PluginError(f"The {kind} '{name}' cannot be used: {why}.", "Rename it in the package that adds it.")
        raise unknown(kind, name, known)
    module = foreign(package).get(name, f"{package}.{name}")
    try:
        return importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except QuestbenchError as error:
        raise PluginError(f"The {kind} '{name}' cannot be used: {error.message}", error.hint) from error
    except BaseException as error:  # a plug-in may even try to end the process
        raise broken(kind, name, f"{module} fails when it is imported: {_told(error)}") from error


def load(package: str, name: str, base: type[T], *, kind: str) -> type[T]:
    """Import one plug-in and return the concrete subclass of ``base`` that it defines.

    Raises:
        UsageError: no plug-in of that name.
        PluginError: it cannot be imported, or does not define exactly one concrete subclass of ``base``.
    """
    module = load_module(package, name, kind=kind)
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    concrete = [value for value in found if not inspect.isabstract(value)]
    if len(concrete) == 1:
        return concrete[0]
    lacking = sorted(getattr(found[0], "__abstractmethods__", ())) if len(found) == 1 else []
    why = f"; {found[0].__name__} lacks {', '.join(lacking)}" if lacking else ""
    what = f"must define exactly one concrete {base.__name__}, found {len(concrete)}{why}"
    raise broken(kind, name, f"{module.__file__} {what}")


def usable(package: str, loader: Callable[[str], T]) -> dict[str, T]:
    """All plug-ins that ``loader`` can load; the broken ones are left out, ``questbench doctor`` names them."""
    found = {}
    for name in names(package):
        with contextlib.suppress(PluginError):
            found[name] = loader(name)
    return found


def broken(kind: str, name: str, why: str) -> PluginError:
    """The error for a plug-in that lacks something or fails."""
    return PluginError(f"The {kind} '{name}' cannot be used: {why}.", f"Do without it, or repair it: {CHECK}")


def call(kind: str, name: str, act: Callable[[], T]) -> T:
    """Run a plug-in's own code where its failure must not end what others do.

    Raises:
        PluginError: it raised anything, or tried to end the process.
    """
    try:
        return act()
    except (KeyboardInterrupt, QuestbenchError):
        raise
    except BaseException as error:
        raise broken(kind, name, f"it failed: {_told(error)}") from error


def _told(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it tries to end the process (exit {error.code})"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
