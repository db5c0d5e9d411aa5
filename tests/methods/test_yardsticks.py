"""Oracle and random mark the ends: the pages with the best keys, and pages drawn without looking."""

import torch
from core_helpers import HEADS, KV_HEADS, PAGE, Counter, Driver

from questbench import attention
from questbench.methods.oracle import Oracle
from questbench.methods.random import Random

GROUP = HEADS // KV_HEADS


def test_oracle_reads_the_page_of_the_best_key(ops):
    counter = Counter()
    driver = Driver(Oracle(24), ops, 2, observer=counter)
    driver.prefill([70, 44])
    for _ in range(6):
        q, k, v = driver.entries(1)
        driver.layer.append(k, v)
        attention.decode(driver.layer, q[:, :, 0].contiguous(), driver.scoring, counter)
        for row in range(2):
            keys = driver.layer.gather(row)[0].repeat_interleave(GROUP, dim=0)
            products = (keys @ q[row, :, 0, :, None])[..., 0].view(KV_HEADS, GROUP, -1).amax(1)
            newest = (driver.layer.held[row] - 1) // PAGE
            best = products[:, : newest * PAGE].argmax(1)
            for head in range(KV_HEADS):
                assert counter.visits[-1][row, head, best[head]] == GROUP


def test_random_draws_anew_in_each_step_and_the_same_in_each_run(ops):
    visits = []
    for _ in range(2):
        counter = Counter()
        driver = Driver(Random(24), ops, 1, observer=counter)
        driver.prefill([90])
        for _ in range(4):
            driver.step()
        visits.append([step[0, :, :90] for step in counter.visits])
    assert all(torch.equal(one, other) for one, other in zip(*visits, strict=True))
    assert any(not torch.equal(visits[0][0], step) for step in visits[0][1:])


def test_entries_scored_are_counted_apart_from_entries_attended():
    assert Oracle(24).tokens_scored(90) == 90 and Random(24).tokens_scored(90) == 0
    assert Oracle.yardstick and Random.yardstick
