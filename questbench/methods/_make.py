"""Build methods from names and ``-M`` values: the strings of the command line become dataclass fields."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from questbench import registry
from questbench._coerce import coerce
from questbench.errors import UsageError
from questbench.methods._base import Method

PACKAGE = "questbench.methods"


def method_class(name: str) -> type[Method]:
    """The class of a registered method. Raises UsageError for an unknown name."""
    return registry.load(PACKAGE, name, Method, kind="method")


def make(name: str, budget: int, arguments: Mapping[str, str] | None = None) -> Method:
    """A method with its fields set.

    Args:
        name: registered name.
        budget: visible entries per query head.
        arguments: ``field`` or ``method.field`` -> text. A plain field that this method does not have is left to
            the other methods of the run; :func:`check_arguments` finds those that no method has.

    Raises:
        UsageError: unknown method, or a value that its field does not take.
    """
    kind = method_class(name)
    fields = _fields(kind)
    chosen: dict[str, Any] = {}
    for key, text in (arguments or {}).items():
        owner, _, field = key.rpartition(".")
        if owner in ("", name) and field in fields:
            try:
                chosen[field] = coerce(text, fields[field])
            except ValueError as error:
                raise UsageError(f"-M {name}.{field}={text}: {error}.", "Look at: questbench ls methods.") from None
    return kind(**{"budget": budget} | chosen)


def make_all(name: str, budget: int, arguments: Mapping[str, str] | None = None) -> dict[str, Method]:
    """Every variant of a method that ``-M`` values with commas ask for, each once, by a label.

    Args:
        name: registered name; also the label where there is one variant.
        budget: visible entries per query head.
        arguments: as for :func:`make`; ``"kv_head,q_head"`` makes two variants, commas in two fields all combinations.
            A field that is itself a list keeps its commas.

    Raises:
        UsageError: unknown method, a value that its field does not take, or an empty one between commas.
    """
    fields = _fields(method_class(name))
    swept: dict[str, list[str]] = {}
    for key, text in (arguments or {}).items():
        owner, _, field = key.rpartition(".")
        if owner in ("", name) and field in fields and not _is_list(fields[field]):
            swept[key] = _alternatives(key, text)
    found: dict[str, Method] = {}
    for values in itertools.product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        method = make(name, budget, {**(arguments or {}), **chosen})
        several = [f"{key.rpartition('.')[2]}={text}" for key, text in chosen.items() if len(swept[key]) > 1]
        if method not in found.values():  # "4,4.0" is one variant
            found[f"{name}[{', '.join(several)}]" if several else name] = method
    return found


def check_arguments(names: Iterable[str], arguments: Mapping[str, str]) -> None:
    """Raise UsageError for a ``-M`` key that no method of the run has."""
    known = {name: sorted(_fields(method_class(name))) for name in names}
    for key in arguments:
        owner, _, field = key.rpartition(".")
        if owner and owner not in known:
            raise UsageError(
                f"-M {key}: method '{owner}' is not part of this run ({', '.join(known)}).", "Add it with --method."
            )
        if not any(field in fields for name, fields in known.items() if owner in ("", name)):
            listed = "; ".join(f"{name}: {', '.join(fields)}" for name, fields in known.items() if fields)
            raise UsageError(f"No method of this run has a field '{field}'.", f"Fields are: {listed or 'none'}.")


def _fields(kind: type[Method]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True, localns={"Tensor": object, "MassMode": str})
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.name != "budget"}


def _is_list(hint: Any) -> bool:
    return (typing.get_origin(hint) or hint) in (list, tuple)


def _alternatives(key: str, text: str) -> list[str]:
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise UsageError(f"-M {key}={text}: there is nothing between two commas.", f"Write -M {key}=VALUE,VALUE.")
    return list(dict.fromkeys(found))
