"""State of a method beside the cache: it hears of every change, goes where the cache goes, and is counted."""

from dataclasses import dataclass

import pytest
import torch
from core_helpers import KV_HEADS, Driver

from questbench.methods._base import Keep, State
from questbench.methods.dense import Dense


class Texts(State):
    """Keeps the sum of every key of a row, slot by slot, which the cache itself can confirm."""

    def __init__(self, layer):
        self.sums = torch.zeros((layer.rows, layer.kv_heads, layer.pages.table.shape[1] * layer.page_size))
        self.calls = []
        if any(layer.held):
            self.appended(layer, layer.held)

    def appended(self, layer, new):
        self.calls.append("appended")
        for row, count in enumerate(new):
            first = int(layer.lengths[row]) - count
            pages = layer.page_table[row].long()
            keys = layer.paged.k[pages].transpose(0, 1).flatten(1, 2)[:, first : first + count]
            self.sums[row, :, first : first + count] = keys.sum(-1)

    def prompted(self, layer):
        self.calls.append("prompted")

    def stepped(self, layer):
        self.calls.append("stepped")

    def moved(self, layer, kept):
        old, self.sums = self.sums, torch.zeros_like(self.sums)
        for row, slots in enumerate(kept):
            self.sums[row, :, : slots.shape[1]] = old[row].gather(1, slots)

    def fit(self, layer, slots):
        if slots > self.sums.shape[2]:
            self.sums = torch.nn.functional.pad(self.sums, (0, slots - self.sums.shape[2]))

    def fork(self, layer):
        twin = Texts(layer)
        twin.sums = self.sums.clone()
        return twin

    def select_rows(self, rows):
        self.sums = self.sums[rows]

    def rewind(self, held):
        for row, most in enumerate(held):
            self.sums[row, :, most:] = 0

    def bytes(self, layer, stored):
        return stored // 4 + self.sums.numel()


@dataclass(frozen=True)
class Noted(Dense):
    """Dense with state, or with a rule for the prompt's end alone."""

    kept: int | None = None

    def start(self, layer):
        return Texts(layer)

    def keep_prompt(self):
        return None if self.kept is None else Keep(self.kept, sinks=2, by="age")


def right(layer) -> bool:
    """Whether the state is that of the entries which the cache holds."""
    for row, held in enumerate(layer.held):
        if not torch.equal(layer.state.sums[row, :, :held], layer.gather(row)[0].sum(-1)):
            return False
    return True


@pytest.mark.parametrize("kept", [None, 20])
def test_state_follows_the_entries(ops, kept):
    driver = Driver(Noted(kept=kept), ops, 2)
    driver.prefill([37, 15])
    assert right(driver.layer) and driver.layer.state.calls == ["appended", "prompted"]
    assert driver.layer.held == ([37, 15] if kept is None else [20, 15])
    for _ in range(30):
        driver.step()
    assert right(driver.layer) and driver.layer.state.calls[2:] == ["appended", "stepped"] * 30
    layer = driver.layer
    twin = layer.fork(Noted(kept=kept))
    driver.step()
    assert right(twin) and right(layer) and twin.held != layer.held
    twin.rewind([held - 3 for held in twin.held])
    assert right(twin)
    with pytest.raises(ValueError, match="cannot go back"):
        twin.rewind([10, 10] if kept else [-1, -1])
    twin.select_rows(torch.tensor([1, 0, 1]))
    assert right(twin) and twin.state.sums.shape[:2] == (3, KV_HEADS)


def test_a_fork_for_another_method_begins_with_the_entries(ops):
    driver = Driver(Dense(), ops, 2)
    driver.prefill([37, 15])
    for page_size in (None, 4):
        assert right(driver.layer.fork(Noted(), page_size=page_size))
    assert driver.layer.fork(Noted()).fork(Dense()).state is None


def test_its_bytes_are_those_of_the_layer(ops):
    driver = Driver(Noted(), ops, 2)
    plain = Driver(Dense(), ops, 2)
    for one in (driver, plain):
        one.prefill([37, 15])
    assert driver.layer.bytes[0] == plain.layer.bytes[0] // 4 + driver.layer.state.sums.numel()


def test_a_frozen_layer_tells_its_state_of_every_step(ops):
    driver = Driver(Noted(kept=20), ops, 2)
    driver.prefill([37, 15])
    driver.layer.freeze(12)
    for _ in range(12):
        driver.step()
        driver.layer.advance()
        assert right(driver.layer)
    assert driver.layer.positions[0, 0, 20:32].tolist() == list(range(37, 49))
    driver.layer.rewind([25, 20])
    assert driver.layer.seen == [42, 20] and right(driver.layer)
    driver.step()
    assert driver.layer.positions[:, 0, [25, 20]].diagonal().tolist() == [42, 20]
