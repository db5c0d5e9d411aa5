"""Entries that a method rewrites: the cache reads the new ones, and no other cache does."""

import torch
from core_helpers import PAGE, Driver, same, state

from questbench.methods.dense import Dense


def test_replaced_entries_are_the_cache_s_own(ops):
    driver = Driver(Dense(), ops, 2)
    driver.prefill([2 * PAGE + 3, PAGE])
    base = driver.layer
    before, twin = state(base), base.fork(Dense())
    k, v = twin.gather(0)
    twin.pages.replace(0, k.round(), v.round())
    assert same(state(base), before)
    assert all(torch.equal(got, want.round()) for got, want in zip(twin.gather(0), (k, v), strict=True))
    assert all(torch.equal(got, want) for got, want in zip(twin.gather(1), base.gather(1), strict=True))
    driver.layer = twin
    driver.step()
    assert twin.held == [2 * PAGE + 4, PAGE + 1] and same(state(base), before)
