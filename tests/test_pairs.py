"""A grid that is thinned out still shows every two values together."""

from __future__ import annotations

import itertools

import pytest
from pairs import kept


@pytest.mark.parametrize("sizes", [(2, 12, 2), (5, 12, 2), (3, 2, 12, 2), (3, 3, 4), (1, 2, 3)])
def test_every_pair_is_left(sizes: tuple[int, ...]) -> None:
    cells = [dict(zip("abcd", places, strict=False)) for places in itertools.product(*map(range, sizes))]
    left = [cell for cell, stays in zip(cells, kept(cells), strict=True) if stays]
    assert len(left) == len(cells) // min(sizes)
    for one, other in itertools.combinations("abcd"[: len(sizes)], 2):
        assert {(cell[one], cell[other]) for cell in left} == {(cell[one], cell[other]) for cell in cells}


def test_two_parameters_have_no_cell_to_spare() -> None:
    cells = [{"a": a, "b": b} for a in range(2) for b in range(3)]
    assert sum(kept(cells)) == 3, "every value is seen, but not every pair: mark no such grid"


@pytest.mark.every_pair
@pytest.mark.parametrize(("c", "double"), [(0, 0), (1, 2), (2, 4)])
@pytest.mark.parametrize("b", range(4))
@pytest.mark.parametrize("a", range(3))
def test_the_mark_leaves_just_those_cells(request: pytest.FixtureRequest, a: int, b: int, c: int, double: int) -> None:
    assert double == 2 * c
    slow = request.node.get_closest_marker("slow") is not None
    assert slow == ((a + b + c) % 3 != 0)
