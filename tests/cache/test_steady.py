"""Once every row evicts in every step, positions come from the device alone, and they are those of the text."""

from __future__ import annotations

import pytest
import torch
from core_helpers import EVICTING, Driver, sparse_methods


@pytest.mark.parametrize("name", EVICTING)
@pytest.mark.parametrize("lengths", [[40, 40], [40, 23], [23, 5]])
def test_positions_are_those_of_the_text(name, lengths, ops):
    """Rows reach the budget of 24 together, one after the other, or while decoding."""
    driver = Driver(sparse_methods(24)[name], ops, 2)
    driver.prefill(lengths)
    for _ in range(30):
        seen = list(driver.layer.seen)
        q, k, v = driver.entries(1)
        driver.layer.append(k, v)
        layer = driver.layer
        for row in range(2):
            assert (layer.positions[row, :, layer.held[row] - 1] == seen[row]).all()
            lag = [held - text for held, text in zip(layer.held, layer.seen, strict=True)]
            assert (layer.lag() is None and lag == [0, 0]) or layer.lag().tolist() == lag
        driver.layer.steps += 1
        driver.layer.ops.attend(
            q[:, :, 0].contiguous(),
            layer.paged,
            0.1,
            mass=layer.mass,
            mass_mode=layer.method.step_mass,
        )
        driver.layer.end_step()
    assert driver.layer._slots.newest == 23


def test_a_prompt_in_between_starts_anew(ops):
    driver = Driver(sparse_methods(24)["streaming_llm"], ops, 2)
    driver.prefill([40, 40])
    for _ in range(3):
        driver.step()
    assert driver.layer._slots.newest is not None
    _, k, v = driver.entries(3)
    driver.layer.append(k, v)
    assert driver.layer._slots.newest is None
    assert driver.layer.lag().tolist() == [26 - 46] * 2
    driver.layer.end_step()
    driver.step()
    assert torch.equal(driver.layer.positions[0, 0, :23].sort().values, torch.tensor([0, 1, 2, 3, *range(28, 47)]))
