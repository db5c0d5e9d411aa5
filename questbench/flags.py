"""Flags, each declared once: by the field of a configuration that holds its value.

The command line, ``--resume``, a configuration from a file and the checks of one made in Python all read values here:
texts as users write them (``8k,32k``; commas sweep, ``k`` is 1024), or the values that such texts stand for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from questbench import registry, seeding, units
from questbench.errors import UsageError

MODEL, AXES, SAMPLES, ATTENTION = "Model", "Axes (commas sweep)", "Model and samples", "Attention"
HOW, MACHINE, RUN = "Measurement", "Machine", "Run"
PANELS = (MODEL, AXES, SAMPLES, ATTENTION, HOW, MACHINE, RUN)
"""Of a help page, in its order."""

Reader = Callable[[Any, str], Any]
"""``reader(value, name)``: the value of the flag of that name, from a text or from itself; raises UsageError."""
Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Flag:
    """How a field is named, shown and read."""

    names: tuple[str, ...]
    metavar: str
    """Empty for a switch, which takes no value."""
    panel: str
    help: str
    reader: Reader | None
    order: int
    """Lower ones stand first in their panel; those alike in the order of the fields."""
    default: Any = None

    @property
    def name(self) -> str:
        """As messages call it: without what turns a switch off."""
        return self.names[0].partition("/")[0]

    def read(self, value: Any) -> Any:
        """The field's value; the default is always one.

        Raises:
            UsageError: the flag takes no such value.
        """
        same = type(value) is type(self.default) and value == self.default
        return value if same or self.reader is None else self.reader(value, self.name)

    @property
    def shown(self) -> Any:
        """The default as a user would write it; ``None`` where there is none to show, a boolean for a switch."""
        value = self.default
        if isinstance(value, bool) or value in (None, [], {}, [None]):
            return value if isinstance(value, bool) else None
        if isinstance(value, list):
            return (", " if isinstance(value[0], str) else ",").join(map(_shown, value))
        return _shown(value)


def flag(
    default: Any, line: str = "", panel: str = "", help: str = "", reader: Reader | None = None, order: int = 0
) -> Any:
    """A field of a configuration with its flag; with a default alone, the flag of the class it derives from.

    Args:
        line: the flag's names and what its value is called: ``--budget --token-budget TOKENS``.
        reader: by default that of the field's type.
        order: see :class:`Flag`.
    """
    names = tuple(word for word in line.split() if word.startswith("-"))
    metavar = " ".join(word for word in line.split() if not word.startswith("-"))
    metadata = {"flag": Flag(names, metavar, panel, help, reader, order)} if names else {}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_made: dict[type[Any], Mapping[str, Flag]] = {}


def flags(config_class: type[Any]) -> Mapping[str, Flag]:
    """The flags of a configuration by field, in the order of the help page; made once."""
    if config_class in _made:
        return _made[config_class]
    found = {}
    for field in dataclasses.fields(config_class):
        own = [vars(base).get("__dataclass_fields__", {}).get(field.name) for base in config_class.__mro__]
        declared = next(one.metadata["flag"] for one in own if one is not None and "flag" in one.metadata)
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        reader = declared.reader or READERS[str(field.type).removesuffix(" | None")]
        found[field.name] = dataclasses.replace(declared, default=made, reader=reader)
    ordered = sorted(found.items(), key=lambda item: (PANELS.index(item[1].panel), item[1].order))
    return _made.setdefault(config_class, MappingProxyType(dict(ordered)))


def read(config_class: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values by field.

    Args:
        given: by field or by flag without its dashes (``seq_lens``, ``seq-len``): texts, or values as JSON holds them.

    Raises:
        UsageError: there is no such flag, one is given twice, or takes no such value.
    """
    known = flags(config_class)
    fields = {_plain(name): field for field, flag in known.items() for name in (field, *flag.names)}
    found: dict[str, Any] = {}
    for key, value in given.items():
        if (field := fields.get(_plain(key))) is None:
            raise registry.unknown("setting", key, sorted(known))
        if field in found:
            raise UsageError(f"{known[field].name} is given twice.", "Give it once.")
        found[field] = known[field].read(value)
    return found


def from_mapping(config_class: type[Config], given: Mapping[str, Any]) -> Config:
    """A configuration from what a file says; refuses what the command line refuses. See :func:`read`."""
    return config_class(**read(config_class, given))


def check(config: Any) -> None:
    """Refuse values that the command line would not take, of a configuration that was made in Python.

    Raises:
        UsageError: naming the flag.
    """
    for field, declared in flags(type(config)).items():
        declared.read(getattr(config, field))


def text(value: Any, name: str) -> str:
    """Any text."""
    if not isinstance(value, str):
        raise UsageError(f"{name} takes a text, not {value!r}.", f"Write {name} and a name.")
    return value


def choice(what: str, choices: Sequence[str]) -> Reader:
    """One of a few words."""

    def one(value: Any, name: str) -> str:
        if text(value, name) not in choices:
            raise registry.unknown(what, value, list(choices))
        return str(value)

    return one


def names(value: Any, name: str) -> list[str]:
    """``"dense,quest"`` -> ``["dense", "quest"]``, each once."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    found = list(dict.fromkeys(stripped for part in parts if (stripped := text(part, name).strip())))
    if not found:
        raise UsageError(f"{name} names nothing.", "Write one or more names, separated by commas.")
    return found


def each(one: Reader) -> Reader:
    """Several of what ``one`` reads, each once."""

    def several(value: Any, name: str) -> list[Any]:
        parts = names(value, name) if isinstance(value, str) else value if isinstance(value, list) else [value]
        if not parts:
            raise UsageError(f"{name} names nothing.", "Write one or more, separated by commas.")
        return list(dict.fromkeys(one(part, name) for part in parts))

    return several


def at_least(least: int) -> Reader:
    """``"4k"`` -> 4096: a whole number of ``least`` or more."""

    def count(value: Any, name: str) -> int:
        if isinstance(value, str):
            value = units.parse_count(value, what=f"value for {name}")
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageError(f"{value!r} is not a value for {name}.", "Write a whole number such as 4096, or 4k.")
        if value < least:
            raise UsageError(f"{name} {value}: must be at least {least}.", f"Write {name} {max(least, 1)} or more.")
        return value

    return count


count = at_least(1)
counts = each(count)


def whole(value: Any, name: str) -> int:
    """Any whole number of 64 bits."""
    if isinstance(value, str):
        value = _number(value, int, name, "integer")
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{name} takes a whole number, not {value!r}.", f"Write {name} 0.")
    return seeding.check(value)


def number(value: Any, name: str) -> float:
    """Any number."""
    if isinstance(value, str):
        value = _number(value, float, name, "float")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise UsageError(f"{name} takes a number, not {value!r}.", f"Write {name} 10.")
    return float(value)


def _bounded(holds: Callable[[float], bool], words: str, example: str) -> Callable[[Any, str], float]:
    def one(value: Any, name: str) -> float:
        if not holds(found := number(value, name)):
            raise UsageError(f"{name} {found:g}: must be a number {words}.", f"Write {name} {example}.")
        return found

    return one


positive = _bounded(lambda value: 0 < value < math.inf, "above 0", "10")
not_negative = _bounded(lambda value: 0 <= value < math.inf, "of 0 or more", "10")
share = _bounded(lambda value: 0 < value < 1, "between 0 and 1", "0.02 for 2 points of 100")


def duration(value: Any, name: str) -> float:
    """``"20m"`` -> 1200.0."""
    return units.parse_duration(value, what=f"duration for {name}") if isinstance(value, str) else positive(value, name)


def switch(value: Any, name: str) -> bool:
    """On or off."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} is true or false, not {value!r}.", "Leave it out, or write true.")
    return value


def pairs(value: Any, name: str) -> dict[str, str]:
    """``["a=1", "quest.b=2"]`` -> ``{"a": "1", "quest.b": "2"}``."""
    found: dict[str, str] = {}
    for written, key, field in _items(value, name):
        if not (key and field):
            raise UsageError(f"{name} '{written}' is not name=value.", f"Write it as {name} quest.select_by=q_head.")
        if key in found:
            raise UsageError(f"{name} {key} is given twice.", "Give each field once.")
        found[key] = field
    return found


def data_sources(value: Any, name: str) -> dict[str, str]:
    """``["pg19=books", "LongBench"]`` -> ``{"pg19": "books", "*": "LongBench"}``; ``*`` is for all tasks."""
    found: dict[str, str] = {}
    for written, task, path in _items(value, name):
        # A path may have an equals sign.
        named = task and (isinstance(value, Mapping) or task in registry.names("questbench.tasks"))
        key, where = (task, path) if named else ("*", written)
        if not where.strip():
            raise UsageError(f"{name} '{written}' names nothing.", f"Write {name} PATH, or {name} TASK=PATH.")
        if key in found:
            raise UsageError(f"{name} is given twice for {'all tasks' if key == '*' else key}.", "Give it once.")
        found[key] = where
    return found


def _items(value: Any, name: str) -> Iterator[tuple[str, str, str]]:
    """Each text as it was written, its part before an equals sign and the one behind; empty ones without any."""
    listed = [f"{key}={item}" for key, item in value.items()] if isinstance(value, Mapping) else value
    if not isinstance(listed, (list, tuple)):
        raise UsageError(f"{name} takes NAME=VALUE, not {value!r}.", "Write one line for each name.")
    for written in listed:
        before, equals, behind = text(written, name).partition("=")
        yield written, before.strip() if equals else "", behind.strip()


def _number(value: str, kind: type[int] | type[float], name: str, called: str) -> float:
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"Invalid value for '{name}': {value!r} is not a valid {called}.") from None


def _shown(value: Any) -> str:
    return units.count(value) if isinstance(value, int) else str(value)


def _plain(name: str) -> str:
    return name.partition("/")[0].lstrip("-").replace("-", "_")


READERS: Mapping[str, Reader] = {
    "bool": switch,
    "str": text,
    "int": count,
    "float": positive,
    "list[str]": names,
    "list[int]": counts,
    "list[int | None]": counts,
    "dict[str, str]": pairs,
}
"""By a field's type, as it is written."""
