"""What a method is called in tables and figures: its name, and whatever was set otherwise than by default."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from questbench.records.schema import ResultRecord, RunManifest

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("budget", "page_size")
"""Arguments that tables show in a column of their own."""


def typed(record: ResultRecord, manifest: RunManifest | None) -> dict[str, Any]:
    """Arguments of the record's method that its user set with ``-M``, with the values that were in force."""
    asked = manifest.config.get("method_args") if manifest else None
    if not isinstance(asked, Mapping):
        return {}
    found = {}
    for name in asked:
        method, dot, field = str(name).rpartition(".")
        if field in COLUMNS or (dot and method != record.method):
            continue
        if field in record.method_args:
            found[field] = record.method_args[field]
        elif dot:  # a cell that failed before its method was made
            found[field] = asked[name]
    return found


def labels(frame: pd.DataFrame) -> list[str]:
    """``quest (variant=eval)``: what was set by hand always shows, and whatever else tells two variants apart."""
    found = []
    for method, arguments, own in zip(frame["method"], frame["args"], frame["typed"], strict=True):
        variants = list(frame.loc[frame["method"] == method, "args"])
        names = dict.fromkeys(name for variant in variants for name in variant if name not in COLUMNS)
        differing = [name for name in names if len({json.dumps(v.get(name), default=str) for v in variants}) > 1]
        shown = dict(own)
        shown |= {name: arguments[name] for name in differing if name in arguments and _telling(name, variants)}
        words = ", ".join(f"{name}={_value(value)}" for name, value in shown.items())
        found.append(f"{method} ({words})" if words else str(method))
    return found


def _value(value: Any) -> str:
    """As it is typed on the command line."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _telling(name: str, variants: list[dict[str, Any]]) -> bool:
    """Whether an argument varies at one budget: one derived from the budget (half of it, say) tells nothing new."""
    by_budget: dict[str, set[str]] = {}
    for variant in variants:
        by_budget.setdefault(json.dumps(variant.get("budget")), set()).add(json.dumps(variant.get(name), default=str))
    return any(len(values) > 1 for values in by_budget.values())
