"""Backends: one file each, the file's name is the backend's name. Importing this imports no torch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from questbench import registry
from questbench.errors import PrerequisiteError, UsageError

if TYPE_CHECKING:
    from questbench.kernels._ops import Ops

PACKAGE = "questbench.kernels"


def names() -> list[str]:
    """Registered backends."""
    return registry.names(PACKAGE)


def load_class(name: str) -> type[Ops]:
    """The class of a backend, whether or not it works here. Raises UsageError for an unknown name."""
    from questbench.kernels._ops import Ops

    if name not in names() and name in registry.names("questbench.baselines"):
        raise UsageError(
            f"'{name}' is a baseline, not a backend: kernel and e2e time it beside the methods wherever it works.",
            "Leave --backend out. Whether it works here: questbench doctor",
        )

    return registry.load(PACKAGE, name, Ops, kind="backend")  # type: ignore[type-abstract]


@functools.cache
def _instance(name: str) -> Ops:
    return load_class(name)()


def load(name: str) -> Ops:
    """A backend that works on this machine.

    Raises:
        UsageError: no backend of that name.
        PrerequisiteError: it does not work here; the message says why.
    """
    ops = _instance(name)
    if reason := ops.unavailable():
        raise PrerequisiteError(
            f"Backend '{name}' does not work here: {reason}", "See: questbench doctor. Or name another --backend."
        )
    return ops


def available() -> dict[str, str | None]:
    """Every backend with ``None``, or the reason why it does not work here."""
    return {name: _unavailable(name) for name in names()}


def device(name: str) -> str:
    """Whose memory a backend works in; ``cpu`` for one that cannot be loaded."""
    try:
        return load_class(name).device
    except registry.PluginError:
        return "cpu"


def _unavailable(name: str) -> str | None:
    try:
        return registry.call("backend", name, lambda: _instance(name).unavailable())
    except registry.PluginError as error:
        return error.message
