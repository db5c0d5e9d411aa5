"""Whether a run that is resumed reads what it was started with: model, data and chat template, by content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from questbench.errors import UsageError

_HASH, _DIGITS = 64, 12
"""Digits of a hash, and how many of them a message shows."""


def require_same_inputs(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other inputs; a run of a version that kept none is not compared.

    Args:
        path: the run, for the message.
        then, now: part (model, data, ...) -> what it is made of -> its hash or text.

    Raises:
        UsageError: naming what changed.
    """
    if not then:
        return
    changed = [line for part in sorted({*then, *now}) for line in _changes(part, then.get(part), now.get(part))]
    if changed:
        raise UsageError(
            f"'{path}' was started with other inputs. " + " ".join(changed),
            "Put back what the run was started with, or start a new run.",
        )


def _changes(part: str, then: Any, now: Any) -> Iterator[str]:
    """A sentence for each thing of a part that is another one, or there only then or now."""
    label = part.replace("_", " ")
    before, after = (side if isinstance(side, Mapping) else {} for side in (then, now))
    for name in sorted({*before, *after}):
        if before.get(name) == after.get(name):
            continue
        if name not in after:
            yield f"The {label} had {name}, which is gone."
        elif name not in before:
            yield f"The {label} now has {name}, which it had not."
        else:
            yield f"The {label} changed: {name}{_shown(before[name], after[name])}."


def _shown(then: Any, now: Any) -> str:
    """What something was and is, unless it is a text of more than a few words."""
    if any(len(str(side)) > _HASH or "\n" in str(side) for side in (then, now)):
        return ""
    was, is_now = (str(side)[:_DIGITS] for side in (then, now))
    return f" (was {was}, is now {is_now})"
