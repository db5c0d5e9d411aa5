"""What a step sees, reads and holds, counted in the op, against what each method says of itself."""

import pytest
import torch
from core_helpers import HEADS, KV_HEADS, NAMES, Counter, Driver, run, sparse_methods, visible

from questbench.methods.dense import Dense
from questbench.methods.quest import Quest

LENGTHS = [61, 30, 90]
BUDGET = 48
GROUP = HEADS // KV_HEADS


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_exact(name, ops):
    method, counter = sparse_methods(BUDGET)[name], Counter()
    run(method, ops, LENGTHS, 21, observer=counter)
    assert len(counter.visits) == 21
    for step, visits in enumerate(counter.visits):
        for row, length in enumerate(LENGTHS):
            seen = length + step + 1
            assert counter.seen[step][row] == seen
            expected = seen if step < method.warmup_steps else visible(method, seen, step + 1)
            assert (visits[row].sum(-1) == GROUP * expected).all(), "entries each query head sees"
            distinct = counter.read[step][row]
            if name == "quest-q_head":
                assert (distinct >= expected).all() and (distinct <= min(seen, GROUP * expected)).all()
            else:
                assert (distinct == expected).all()
            evicts = not method.keeps_all
            assert counter.resident[step][row] == (expected if evicts else seen)


def test_dense_sees_reads_and_holds_all(ops):
    counter = Counter()
    run(Dense(), ops, LENGTHS, 9, observer=counter)
    for step, visits in enumerate(counter.visits):
        for row, length in enumerate(LENGTHS):
            assert (visits[row].sum(-1) == GROUP * (length + step + 1)).all()
            assert counter.resident[step][row] == length + step + 1


@pytest.mark.parametrize(("length", "budget", "attended"), [(100, 1024, 96), (1000, 1024, 992), (400, 16, 48)])
def test_eval_variant_keeps_the_quirks_of_the_papers_accuracy_code(ops, length, budget, attended):
    """Short texts lose a page although they fit the budget, and no budget goes below three pages."""
    counter = Counter()
    method = Quest(budget, variant="eval")
    driver = Driver(method, ops, 1, page_size=16, observer=counter, heads=2, kv_heads=2)
    driver.prefill([length - 1])
    driver.step()
    # The newest page has no special place: it may be left out, or be attended as it is, not full.
    lost = 16 - (length - 1) % 16 - 1
    assert method.tokens_visible(length, 16) == attended
    assert set(counter.visits[0].sum(-1).flatten().tolist()) <= {attended, attended - lost}


def test_eval_variant_may_leave_out_the_query_s_own_page(ops):
    left_out = 0
    for seed in range(8):
        counter = Counter()
        driver = Driver(Quest(48, variant="eval"), ops, 1, observer=counter, seed=seed)
        driver.prefill([200])
        driver.step()
        left_out += int((counter.visits[0][0, :, 200] == 0).sum())
    assert left_out > 0


@pytest.mark.parametrize("name", ["dense", *NAMES])
def test_observers_change_nothing(name, ops):
    method = Dense() if name == "dense" else sparse_methods(BUDGET)[name]
    watched, _ = run(method, ops, LENGTHS, 8, observer=Counter())
    alone, _ = run(method, ops, LENGTHS, 8)
    assert torch.equal(watched, alone)
