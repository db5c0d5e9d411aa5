"""A folder of modules is a registry: the file's name is the registered name.

Listing imports nothing. Loading imports one module and returns the single concrete subclass defined in it.
Entry points ``questbench.{methods,tasks,kernels,plots}`` add modules of other packages.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from types import ModuleType
from typing import TypeVar

from questbench.errors import UsageError

T = TypeVar("T")
LISTED = {"method": "methods", "task": "tasks", "backend": "backends", "shape": "models", "plot": "plots"}
"""Kinds of names that ``questbench ls`` knows, and what it calls them."""


def _search_path(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ValueError(f"{package} is not a package")
    return list(importlib.import_module(package).__path__)


def _entry_points(package: str) -> dict[str, importlib.metadata.EntryPoint]:
    group = "questbench." + package.rsplit(".", 1)[-1]
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}


def names(package: str) -> list[str]:
    """Registered names of ``package`` (such as ``questbench.methods``), sorted; imports no plug-in."""
    own = {module.name for module in pkgutil.iter_modules(_search_path(package)) if not module.name.startswith("_")}
    return sorted(own | set(_entry_points(package)))


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
    """
    known = names(package)
    if name not in known:
        raise unknown(kind, name, known)
    point = _entry_points(package).get(name)
    if point is not None:
        return importlib.import_module(point.module)
    return importlib.import_module(f"{package}.{name}")


def load(package: str, name: str, base: type[T], *, kind: str) -> type[T]:
    """Import one plug-in and return the concrete subclass of ``base`` that it defines.

    Raises:
        UsageError: no plug-in of that name.
        TypeError: the module does not define exactly one concrete subclass of ``base``.
    """
    module = load_module(package, name, kind=kind)
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, base)
        and not inspect.isabstract(value)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__file__} must define exactly one concrete {base.__name__}, found {len(found)}")
    return found[0]
