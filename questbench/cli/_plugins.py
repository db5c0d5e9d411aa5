"""Which plug-ins cannot be used, found out in another process: one that crashes or ends the process is found too."""

from __future__ import annotations

import json
from collections.abc import Sequence

from questbench import registry
from questbench.cli._child import python

PACKAGES = {
    "questbench.methods": "method",
    "questbench.tasks": "task",
    "questbench.kernels": "backend",
    "questbench.baselines": "baseline",
    "questbench.report.plots": "plot",
}
"""Packages of plug-ins, and what one of each is called."""

_PROBE = """
import importlib, json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what plug-ins print is no answer
LOADERS = {
    "questbench.methods": ("questbench.methods._make", "method_class"),
    "questbench.tasks": ("questbench.tasks._make", "task_class"),
    "questbench.kernels": ("questbench.kernels", "load_class"),
    "questbench.baselines": ("questbench.baselines", "load"),
    "questbench.report.plots": ("questbench.report.plots._base", "load"),
}
from questbench.errors import QuestbenchError
for package, name in json.loads(sys.argv[1]):
    module, function = LOADERS[package]
    reason = None
    try:
        getattr(importlib.import_module(module), function)(name)
    except QuestbenchError as error:
        reason = error.message
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
    answers.write(json.dumps(reason) + "\\n")
    answers.flush()
os._exit(0)
"""
SECONDS = 120
"""A plug-in that takes longer to import is called broken."""


def every() -> list[tuple[str, str]]:
    """Package and name of every plug-in that is registered."""
    return [(package, name) for package in PACKAGES for name in registry.names(package)]


def problems(plugins: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Why plug-ins, each a package and a name, cannot be used; those that can are left out."""
    found: dict[tuple[str, str], str] = {}
    waiting = list(plugins)
    while waiting:
        done = python(_PROBE, json.dumps(waiting), seconds=SECONDS)
        for line in done.out.splitlines()[: len(waiting)]:
            plugin, reason = waiting.pop(0), json.loads(line)
            if reason is not None:
                found[plugin] = reason
        if waiting:  # it died, or was ended, with the first one that has no answer
            kind = PACKAGES[waiting[0][0]]
            why = (
                f"The {kind} '{waiting[0][1]}' cannot be used: {done.why or 'it ends the process when it is imported'}."
            )
            found[waiting.pop(0)] = why
    return found
