"""Grids of tests of which a default run takes enough that every two values of two parameters meet."""

from __future__ import annotations

from collections.abc import Sequence

import pytest


def leave_every_pair(items: Sequence[pytest.Item]) -> None:
    """Make the cells slow that grids marked ``every_pair`` can do without."""
    grids: dict[object, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("every_pair") is not None:
            grids.setdefault(getattr(item, "function", None), []).append(item)
    for cells in grids.values():
        for item, stays in zip(cells, kept(_places(cells)), strict=True):
            if not stays:
                item.add_marker(pytest.mark.slow)


def kept(cells: Sequence[dict[str, int]]) -> list[bool]:
    """Which cells of a full grid stay: those whose sum of indices the size of the smallest parameter divides.

    Whatever the other parameters are, just one value of the smallest fits them, and the other way round: the grid
    shrinks by that factor, and with three parameters or more every pair of values is left.

    Args:
        cells: index in each parameter's values, by the name of the parameter.
    """
    smallest = min(len({cell[name] for cell in cells}) for name in cells[0])
    return [sum(cell.values()) % smallest == 0 for cell in cells]


def _places(items: Sequence[pytest.Item]) -> list[dict[str, int]]:
    """Where the values of each cell stand among those of the grid, in order of appearance.

    pytest's own indices number the cells where a test is called with all values directly.
    """
    seen: dict[str, list[object]] = {}
    places = []
    for item in items:
        values: dict[str, object] = dict(item.callspec.params)  # type: ignore[attr-defined]
        for mark in item.iter_markers("parametrize"):
            names = mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0]
            # Names that are given together are one parameter.
            values[",".join(names)] = tuple(values.pop(name.strip()) for name in names)
        for name, value in values.items():
            if value not in seen.setdefault(name, []):
                seen[name].append(value)
        places.append({name: seen[name].index(value) for name, value in values.items()})
    return places
