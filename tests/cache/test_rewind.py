"""Going back: each row forgets its newest entries alone, and what stays is as if nothing had been appended."""

import pytest
import torch
from core_helpers import PAGE, Driver, same, state

from questbench.kernels._bounds import read_bounds
from questbench.methods.quest import Quest


def bounds_are_those_of_the_keys(layer) -> bool:
    """Whether every page's bounds are the maxima and minima of the keys that the page holds."""
    for row, held in enumerate(layer.held):
        keys = layer.gather(row)[0]
        for place in range(-(-held // PAGE)):
            inside = keys[:, place * PAGE : min((place + 1) * PAGE, held)]
            found = read_bounds(layer.bounds, layer.page_table[row, place : place + 1].long())[0]
            if not torch.equal(found, torch.stack([inside.amax(1), inside.amin(1)], dim=1)):
                return False
    return True


@pytest.mark.parametrize("target", [20, 17, 16, 9, [20, 12], [25, 18]])
def test_rows_of_unequal_length_keep_right_bounds(target, ops):
    driver = Driver(Quest(16, variant="eval"), ops, 2)
    driver.prefill([30, 18])
    layer = driver.layer
    layer.rewind(target)
    wanted = [target, target] if isinstance(target, int) else target
    assert layer.held == layer.seen == [min(30, wanted[0]), min(18, wanted[1])]
    assert layer.lengths.tolist() == layer.held
    assert bounds_are_those_of_the_keys(layer)
    for _ in range(PAGE + 1):
        driver.step()
    assert bounds_are_those_of_the_keys(layer)


def test_rows_that_hold_less_stay_as_they_are(ops):
    driver = Driver(Quest(16), ops, 2)
    driver.prefill([30, 18])
    before = state(driver.layer)
    driver.layer.rewind(30)
    assert same(state(driver.layer), before)
