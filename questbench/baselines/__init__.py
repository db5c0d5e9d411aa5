"""What we are measured against: one file each, its name is the baseline's name. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from questbench import registry

if TYPE_CHECKING:
    from questbench.baselines._base import Baseline

PACKAGE = "questbench.baselines"


def names() -> list[str]:
    """Registered baselines."""
    return registry.names(PACKAGE)


def load(name: str) -> Baseline:
    """A baseline, whether or not it works here. Raises UsageError for an unknown name."""
    from questbench.baselines._base import Baseline

    return registry.load(PACKAGE, name, Baseline, kind="baseline")()


def unavailable(name: str, made: Baseline | None = None) -> str | None:
    """Why a baseline does not work here, or ``None``.

    Args:
        made: the baseline, where it is loaded already.
    """
    try:
        return registry.call("baseline", name, lambda: (made or load(name)).unavailable())
    except registry.PluginError as error:
        return error.message


def of(verb: Literal["kernel", "e2e"], device: str) -> Iterator[tuple[str, Baseline, str | None]]:
    """(name, baseline, why it does not work here) of all that a command times unasked on this kind of device."""
    found = registry.usable(PACKAGE, load)
    for name, baseline in sorted(found.items(), key=lambda item: (item[1].device != "any", item[0])):
        if verb in baseline.verbs and not baseline.asked and baseline.device in ("any", device.partition(":")[0]):
            yield name, baseline, unavailable(name, baseline)
