"""What the CPU kernels are told for a machine: the settings, their alternatives by name, what is forced, what is kept.

An alternative is another way to the same results, which one machine runs faster and another one slower. ``_tune.py``
measures them after a build; the choice lies beside the library as JSON, a file for each number of threads.
``QUESTBENCH_CHOICE`` forces alternatives by name, as in ``order=apart,ahead=1``: for every kind of attention that has
the setting. ``default`` leaves out what was measured.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from questbench import _compiling
from questbench.errors import UsageError

VARIABLE = "QUESTBENCH_CHOICE"
DEFAULT = "default"
KINDS = ("dense_single", "dense_grouped", "lists_single", "lists_grouped")
"""Everything is read, or lists; by one query head at a time, or by several that share it. In the library's order."""


@dataclass(frozen=True)
class Setting:
    """Something that may be done in several ways."""

    name: str
    values: dict[str, int]
    """Name of each alternative, and the library's number for it."""
    kinds: tuple[str, ...] = KINDS
    """Where it matters."""


GROUPED = KINDS[1::2]
SETTINGS = (
    Setting("order", {"together": 1, "apart": 0}, KINDS[:2]),  # neighbouring KV heads as one stream, or head by head
    Setting("ahead", {str(tiles): tiles for tiles in (0, 1, 2, 4, 8)}),  # tiles between work and fetch; 0: no fetches
    Setting("fetch", {"l1": 1, "l2": 2}),  # the cache that is fetched into
    Setting("products", {"2x4": 4, "4x2": 2, "8x1": 1}, GROUPED),  # rows x queries of a register block
    Setting("values", {"1x4": 4, "2x2": 2, "4x1": 1}, GROUPED),  # vectors of 16 channels x heads of a register block
    Setting("weights", {"bf16": 1, "fp32": 0}, GROUPED),  # products that weigh the values of bf16
)
"""In the order of the library's ``enum Setting`` (``kernels/cpu/choices.cpp``)."""

Plan = dict[str, dict[str, str]]
"""Kind -> setting -> alternative."""


@dataclass(frozen=True)
class Chosen:
    """What a process runs with."""

    plan: Plan
    source: str
    """``measured``, or ``default`` with the reason behind a colon."""
    forced: dict[str, str] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    """What is stored beside the library, where something was measured."""

    def facts(self) -> dict[str, Any]:
        """For the record of a run."""
        kept: dict[str, Any] = {
            name: self.measured[name] for name in ("processor", "threads", "seconds") if name in self.measured
        }
        return {"source": self.source, "forced": self.forced, "choice": self.plan, **kept}


class Library:
    """The choices of a loaded library.

    Args:
        module: its functions ``offers``, ``choice`` and ``choose``; see ``kernels/cpu/choices.cpp``.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.settings = [one for at, one in enumerate(SETTINGS) if module.offers(at)]

    def of(self, kind: str) -> list[Setting]:
        """The settings that matter for a kind and that this library has."""
        return [one for one in self.settings if kind in one.kinds]

    def now(self) -> Plan:
        """What the library does; its defaults, as long as it was told nothing."""
        return {kind: {one.name: self._name(kind, one) for one in self.of(kind)} for kind in KINDS}

    def apply(self, plan: Plan) -> None:
        """Do as the plan says from the next call on. No call may run meanwhile."""
        for kind, chosen in plan.items():
            for one in self.of(kind):
                self._module.choose(KINDS.index(kind), SETTINGS.index(one), one.values[chosen[one.name]])

    def _name(self, kind: str, setting: Setting) -> str:
        number = self._module.choice(KINDS.index(kind), SETTINGS.index(setting))
        return next(name for name, value in setting.values.items() if value == number)

    def fits(self, plan: Plan) -> bool:
        """Whether a plan has an alternative of this library for each of its settings, and no others."""
        own = {kind: {one.name: one.values for one in self.of(kind)} for kind in KINDS}
        return set(plan) == set(own) and all(
            set(plan[kind]) == set(own[kind]) and all(value in own[kind][name] for name, value in plan[kind].items())
            for kind in own
        )

    def forced(self, plan: Plan, wanted: dict[str, str]) -> Plan:
        """The plan with some settings as the user wants them.

        Raises:
            UsageError: the library for this processor has no such setting.
        """
        known = {one.name for one in self.settings}
        for name in wanted:
            if name not in known:
                raise UsageError(
                    f"{VARIABLE}: the kernels for this processor have one way of '{name}' only.",
                    f"Leave it out. What they have: {_listed(self.settings)}.",
                )
        return {
            kind: {name: wanted.get(name, value) for name, value in settings.items()} for kind, settings in plan.items()
        }


def asked() -> tuple[bool, dict[str, str]]:
    """Whether what was measured is left out, and the alternative of each setting that ``QUESTBENCH_CHOICE`` forces.

    Raises:
        UsageError: it names something unknown.
    """
    default, wanted = False, {}
    for part in filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))):
        name, _, value = (text.strip() for text in part.partition("="))
        setting = next((one for one in SETTINGS if one.name == name), None)
        if part == DEFAULT:
            default = True
        elif setting is not None and value in setting.values:
            wanted[name] = value
        else:
            raise UsageError(f"{VARIABLE}: '{part}' is not known.", f"Use {DEFAULT}, or {_listed(SETTINGS)}.")
    return default, wanted


def _listed(settings: Sequence[Setting]) -> str:
    return ", ".join(f"{one.name}={'|'.join(one.values)}" for one in settings)


def words(plan: Plan, measured: dict[str, Any]) -> str:
    """What differs from the library's defaults, where something was measured, in a line."""
    default = measured.get("default", {})
    found = [
        f"{kind} {name}={value}"
        for kind, settings in plan.items()
        for name, value in settings.items()
        if default.get(kind, {}).get(name, value) != value
    ]
    return ", ".join(found) or "as built"


def path(library: Path, threads: int) -> Path:
    """Where the choice for a number of threads is kept."""
    return library.with_name(f"choice-{threads}.json")


def stored(file: Path) -> dict[str, Any] | None:
    """What is kept there; ``None`` if there is nothing, if it cannot be read or was measured on another processor."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("processor") != _compiling.processor_name():
        return None
    whole = isinstance(found.get("threads"), int) and isinstance(found.get("seconds"), float)
    return found if whole and all(map(_is_plan, (found.get("choice"), found.get("default")))) else None


def _is_plan(plan: Any) -> bool:
    """Whether this is a plan of some library."""
    return isinstance(plan, dict) and all(
        isinstance(settings, dict) and all(isinstance(value, str) for value in settings.values())
        for settings in plan.values()
    )


def settle(library: Path, module: Any, threads: int, measure: Callable[[Library], dict[str, Any]]) -> Chosen:
    """Have the library run as is best on this machine: as it was measured before, or as is measured now.

    Of several processes that find nothing stored, one measures and the others wait. Where nothing can be stored nothing
    is measured either: every process would have to.

    Args:
        measure: gives what is to be stored, ``choice`` among it; leaves the library in any state.

    Raises:
        UsageError: ``QUESTBENCH_CHOICE`` names something unknown.
    """
    plain, wanted = asked()
    loaded = Library(module)
    plan, source, found = loaded.now(), f"default: {VARIABLE} asks for it", None
    loaded.forced(plan, wanted)
    every = {one.name for one in loaded.settings}
    if not plain and not every <= set(wanted):
        try:
            found = _kept(loaded, path(library, threads), functools.partial(measure, loaded))
            source = "measured"
        except OSError as error:
            source = f"default: nothing can be stored beside the library ({error.strerror or error})"
    settled = loaded.forced(found["choice"] if found else plan, wanted)
    loaded.apply(settled)
    return Chosen(settled, source, wanted, found or {})


def _kept(library: Library, file: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is stored; measured and stored if it is not, or does not fit."""

    def usable() -> dict[str, Any] | None:
        found = stored(file)
        return found if found is not None and library.fits(found["choice"]) else None

    if (found := usable()) is not None:
        return found
    lock = f"{file.parent.name}-{file.stem}"
    with _compiling.building(file.parent.parent, lock, "choosing among the same kernels") as scratch:
        if (found := usable()) is not None:
            return found
        sys.stderr.write("Measuring which kernels suit this machine best: a few seconds, once.\n")
        sys.stderr.flush()
        found = measure()
        made = scratch / file.name
        made.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        made.replace(file)
    return found
