"""Forks share pages until one of them writes, and nothing leaks from one to another."""

import pytest
import torch
from core_helpers import EVICTING, NAMES, PAGE, Driver, same, sparse_methods, state

from questbench import attention
from questbench.cache import LayerCache
from questbench.methods.dense import Dense
from questbench.methods.quest import Quest
from questbench.methods.tova import TOVA

LENGTHS = [37, 24, 40]
BOTH = frozenset({1, 8, "sum"})


def parent(ops, lengths=LENGTHS):
    driver = Driver(Dense(), ops, len(lengths), bounds=True)
    driver.prefill(lengths, BOTH)
    return driver


def steps(layer: LayerCache, driver: Driver, count: int, seed: int = 7) -> torch.Tensor:
    """The same decode steps for any cache of the driver's shape."""
    driver.generator.manual_seed(seed)
    out = []
    for _ in range(count):
        q, k, v = driver.entries(1)
        layer.append(k, v)
        out.append(attention.decode(layer, q[:, :, 0].contiguous(), driver.scoring))
    return torch.stack(out)


@pytest.mark.every_pair
# 40 is the longest row itself: its fork evicts in place in pages that are still shared.
@pytest.mark.parametrize("budget", [16, 32, 40, 48, 56])
@pytest.mark.parametrize("name", NAMES)
def test_forks_do_not_alias(name, budget, ops):
    driver = parent(ops)
    base = driver.layer
    twin, sibling = (base.fork(sparse_methods(budget)[name]) for _ in range(2))
    for fork in (twin, sibling):
        fork.end_prefill()
    before = state(base), state(sibling)
    steps(twin, driver, 20)
    assert same(state(base), before[0]) and same(state(sibling), before[1])
    used = state(twin)
    steps(base, driver, 9, seed=11)
    steps(sibling, driver, 20, seed=12)
    assert same(state(twin), used)


@pytest.mark.parametrize("back", [3, 9, 21])
def test_going_back_behind_the_fork_changes_no_other_cache(back, ops):
    """Pages stay shared until they are written to, be it their bounds or, by many entries at once, several of them."""
    driver = parent(ops, [40, 40])
    base = driver.layer
    twin, sibling = (base.fork(Quest(16)) for _ in range(2))
    before = state(base), state(sibling)
    twin.rewind(40 - back)
    assert same(state(base), before[0]) and same(state(sibling), before[1])
    _, k, v = driver.entries(30)
    twin.append(k, v)
    assert same(state(base), before[0]) and same(state(sibling), before[1])
    k, v = twin.gather(1)
    old_k, _ = base.gather(1)
    assert torch.equal(k[:, : 40 - back], old_k[:, : 40 - back]) and not torch.equal(k[:, :40], old_k)
    steps(sibling, driver, 9)
    assert same(state(base), before[0])


@pytest.mark.every_pair
@pytest.mark.parametrize("budget", [16, 40, 64])
@pytest.mark.parametrize("page_size", [PAGE, 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_fork_goes_on_as_if_it_had_done_the_prefill(name, page_size, budget, ops):
    method = sparse_methods(budget)[name]
    direct = Driver(method, ops, len(LENGTHS), page_size=page_size)
    direct.prefill(LENGTHS)
    driver = parent(ops)
    twin = driver.layer.fork(method, page_size=page_size)
    assert twin.page_size == page_size
    twin.end_prefill()
    expected, got = steps(direct.layer, driver, 20), steps(twin, driver, 20)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert twin.seen == direct.layer.seen and twin.held == direct.layer.held


@pytest.mark.parametrize("name", EVICTING)
def test_a_fork_of_an_evicting_cache_carries_its_state(name, ops):
    driver = Driver(sparse_methods(24)[name], ops, len(LENGTHS))
    driver.prefill(LENGTHS)
    steps(driver.layer, driver, 5)
    twin = driver.layer.fork(driver.layer.method)
    before = state(driver.layer)
    got = steps(twin, driver, 9, seed=3)
    assert same(state(driver.layer), before)
    assert torch.equal(steps(driver.layer, driver, 9, seed=3), got)


def test_closed_pages_are_shared_and_all_come_back(ops):
    driver = parent(ops)
    base, pool = driver.layer, driver.layer.pool
    alone = pool.in_use
    forks = [base.fork(Quest(16)) for _ in range(5)]
    assert pool.in_use == alone and all(fork.pool is pool for fork in forks)
    steps(forks[0], driver, 1)
    # Two rows end within a page, which is copied; the third begins a new one.
    assert pool.in_use == alone + 3
    for layer in (*forks, base):
        layer.release()
    assert pool.in_use == 0


def test_every_page_comes_back_whatever_was_done(ops):
    driver = parent(ops)
    base, pool = driver.layer, driver.layer.pool
    forks = [base.fork(method) for method in sparse_methods(24).values()]
    for fork in forks:
        fork.end_prefill()
        steps(fork, driver, 12)
        fork.select_rows(torch.tensor([2, 2, 0]))
        steps(fork, driver, 3)
    pools = {id(fork.pool): fork.pool for fork in forks} | {id(pool): pool}
    for layer in (*forks, base):
        layer.release()
    assert [one.in_use for one in pools.values()] == [0] * len(pools)


def test_a_fork_without_the_mass_it_needs_says_so(ops):
    driver = Driver(Dense(), ops, 1)
    driver.prefill([40])
    with pytest.raises(ValueError, match="not collected"):
        driver.layer.fork(TOVA(16)).end_prefill()


def test_bounds_are_made_where_the_parent_has_none(ops):
    plain, bounded = Driver(Dense(), ops, 1), Driver(Dense(), ops, 1, bounds=True)
    for driver in (plain, bounded):
        driver.prefill([60])
    twins = [driver.layer.fork(Quest(16)) for driver in (plain, bounded)]
    assert torch.equal(*(steps(twin, plain, 9) for twin in twins))


@pytest.mark.parametrize("name", NAMES)
def test_selected_rows_go_on_as_themselves(name, ops):
    """Row i becomes the old row rows[i], twice if asked; copies do not write into each other."""
    order = torch.tensor([2, 0, 2, 1])
    driver = Driver(sparse_methods(24)[name], ops, len(LENGTHS))
    driver.prefill(LENGTHS)
    steps(driver.layer, driver, 3)
    twin = driver.layer.fork(driver.layer.method)
    driver.generator.manual_seed(5)
    rounds = [driver.entries(1) for _ in range(10)]
    twin.select_rows(order)
    assert twin.rows == 4
    for q, k, v in rounds:
        driver.layer.append(k, v)
        twin.append(k[order], v[order])
        expected = attention.decode(driver.layer, q[:, :, 0].contiguous(), driver.scoring)
        got = attention.decode(twin, q[order][:, :, 0].contiguous(), driver.scoring)
        torch.testing.assert_close(got, expected[order], rtol=1e-5, atol=1e-6)


def test_repeated_rows_part_ways(ops):
    driver = Driver(TOVA(16), ops, 1)
    driver.prefill([30])
    driver.layer.select_rows(torch.tensor([0, 0]))
    driver.rows = 2
    for _ in range(12):
        driver.step()
    one, other = (set(driver.layer.positions[row, 0, :15].tolist()) for row in range(2))
    assert one != other


def test_a_later_turn_of_a_fork_leaves_the_collected_mass_alone(ops):
    driver = parent(ops, [40])
    before = {mode: mass.clone() for mode, mass in driver.layer.prefill_mass.items()}
    twin = driver.layer.fork(TOVA(16))
    twin.end_prefill()
    q, k, v = driver.entries(5)
    twin.append(k, v)
    attention.prefill(twin, q, k, v, driver.scoring)
    assert all(torch.equal(driver.layer.prefill_mass[mode], mass) for mode, mass in before.items())


def test_a_fork_that_needs_no_bounds_keeps_none_and_one_of_it_that_does_has_its_own(ops):
    base = Driver(Quest(24), ops, 2)
    base.prefill([40, 23])
    dense = base.layer.fork(Dense())
    assert dense.bounds is None and dense.pool is base.layer.pool
    for _ in range(20):
        _, k, v = base.entries(1)
        dense.append(k, v)
    quest = dense.fork(Quest(24))
    assert quest.bounds is not None and quest.pool is not dense.pool
    q = base.entries(1)[0][:, :, 0].contiguous()
    options = {"width": 3, "force_newest": True, "merge": "none", "group": 2}
    scores = ops.score(q, quest.paged, skip_newest=True)
    for row in range(2):
        keys = quest.gather(row)[0].repeat_interleave(2, dim=0)
        best = (keys @ q[row][..., None])[..., 0]
        for page in range(quest.held[row] // PAGE - 1):
            assert (scores[row, :, page] >= best[:, page * PAGE : (page + 1) * PAGE].amax(-1) - 1e-4).all()
    assert ops.select(scores, quest.lengths, PAGE, 3, **options)[1].tolist() == [[3] * 4] * 2
