"""What an op is to torch and to a compiled library, derived from the signature of its method in ``Ops``.

A method's arguments become those of the operator, in their order:

    Tensor, Tensor | None, int, float, bool     themselves
    Paged                                       the parts of it that the operator takes
    int | Tensor                                two: the int, and what every row has instead of it (``row_counts``)
    Literal[...]                                an int: the place of the word

The bindings take these, then the results, then what a library is told besides (threads, room to work in).
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from questbench.kernels._paged import Paged

Method = TypeVar("Method", bound=Callable[..., Any])
PARTS = {
    "k_pages": "{}.k",
    "v_pages": "{}.v",
    "bounds": "{}.bounds",
    "page_table": "{}.table",
    "lengths": "{}.lengths",
    "page_size": "{}.k.shape[2]",
}
"""What an operator can take of a :class:`Paged`, and where it stands there."""


class Argument(NamedTuple):
    """One argument of an operator."""

    name: str
    kind: str
    """As a schema spells it: ``Tensor``, ``Tensor?``, ``int``, ``float`` or ``bool``."""
    value: str
    """How it follows from the method's arguments: a Python expression."""


@dataclass(frozen=True)
class Operator:
    """An op, as :func:`operator` declares it."""

    method: Callable[..., Any]
    paged: tuple[str, ...]
    writes: tuple[str, ...]
    results: tuple[str, ...]
    make: Callable[..., tuple[Tensor, ...]]
    strided: tuple[str, ...]
    rows: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the method, the operator and the function in a compiled library."""
        return self.method.__name__

    @functools.cached_property
    def words(self) -> dict[str, dict[str, int]]:
        """The numbers of the words of each argument that has some."""
        hints = typing.get_type_hints(self.method)
        chosen = {name: typing.get_args(hint) for name, hint in hints.items() if _is_literal(hint)}
        return {name: {word: at for at, word in enumerate(words)} for name, words in chosen.items()}

    @functools.cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """Of the operator, in their order."""
        found: list[Argument] = []
        hints = typing.get_type_hints(self.method)
        for name in self._parameters:
            hint = hints[name]
            if hint is Paged:
                for part in self.paged:
                    bare = part.rstrip("?")
                    kind = "int" if bare == "page_size" else "Tensor?" if part != bare else "Tensor"
                    found.append(Argument(bare, kind, PARTS[bare].format(name)))
            elif set(typing.get_args(hint)) == {int, Tensor}:
                found.append(Argument(name, "int", f"{name} if isinstance({name}, int) else 0"))
                found.append(Argument("row_counts", "Tensor?", f"None if isinstance({name}, int) else {name}"))
            elif _is_literal(hint):
                found.append(Argument(name, "int", f"code(words[{name!r}], {name}, {name!r})"))
            else:
                optional = type(None) in typing.get_args(hint)
                found.append(Argument(name, "Tensor?" if optional else hint.__name__, name))
        return tuple(found)

    @property
    def schema(self) -> str:
        """As torch.library takes it, with what is written marked."""
        marks = iter("abcdefghij")
        spelled = []
        for name, kind, _ in self.arguments:
            mark = f"({next(marks)}!)" if name in self.writes else ""
            spelled.append(f"{kind.replace('Tensor', 'Tensor' + mark)} {name}")
        returned = ", ".join(["Tensor"] * len(self.results))
        return f"{self.name}({', '.join(spelled)}) -> {returned if len(self.results) == 1 else f'({returned})'}"

    def method_of(self, call: str) -> Callable[..., Any]:
        """The method of a compiled backend: ``call(name)`` is its function of the operator's arguments.

        Written out as text, once, as dataclasses are: taking arguments apart in every call would cost microseconds.

        Args:
            call: name of the backend's method that gives the function.
        """
        spelled, named = ["self"], False
        for name, given in self._parameters.items():
            if given.kind is given.KEYWORD_ONLY and not named:
                spelled.append("*")
                named = True
            spelled.append(name if given.default is given.empty else f"{name}={given.default!r}")
        values = ", ".join(argument.value for argument in self.arguments)
        source = f"def {self.name}({', '.join(spelled)}):\n    return self.{call}({self.name!r})({values})\n"
        space: dict[str, Any] = {"code": code, "words": self.words}
        exec(source, space)
        made: Callable[..., Any] = space[self.name]
        made.__doc__ = f"See :meth:`Ops.{self.name}`."
        return made

    def picker(self, function: Callable[..., Any]) -> Callable[[Sequence[Any]], Any]:
        """``function`` of the operator's arguments, of which it takes those that its parameters are named after."""
        places = {argument.name: at for at, argument in enumerate(self.arguments)}
        wanted = [places[name] for name in inspect.signature(function).parameters]
        return lambda given: function(*[given[at] for at in wanted])

    @functools.cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        found = dict(inspect.signature(self.method).parameters)
        del found["self"]
        return found


OPERATORS: dict[str, Operator] = {}
"""Every op that is declared, by name."""


def operator(
    *,
    paged: str = "",
    writes: str = "",
    results: str = "",
    make: Callable[..., tuple[Tensor, ...]] = lambda: (),
    strided: str = "",
    rows: str = "",
) -> Callable[[Method], Method]:
    """Declare a method of ``Ops`` as an op; names are separated by blanks.

    Args:
        paged: what is taken of the argument that is a :class:`Paged`; ``?`` behind what may be ``None``.
        writes: arguments that are written into.
        results: names of the results, for the bindings.
        make: gives empty tensors for the results, from the operator's arguments that its parameters are named after.
        strided: arguments that may have any strides: kernels get contiguous ones.
        rows: the same, but where the last dimension is contiguous they stay as they are.
    """

    def declare(method: Method) -> Method:
        lists = (tuple(names.split()) for names in (paged, writes, results))
        taken, written, named = lists
        OPERATORS[method.__name__] = Operator(
            method, taken, written, named, make, tuple(strided.split()), tuple(rows.split())
        )
        return method

    return declare


def code(words: dict[str, int], word: str, what: str) -> int:
    """The number of a word.

    Raises:
        ValueError: there is no such word.
    """
    if word not in words:
        raise ValueError(f"{what} '{word}' is not one of {', '.join(words)}")
    return words[word]


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal
