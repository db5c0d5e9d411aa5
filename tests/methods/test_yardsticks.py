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


def test_oracle_scores_pages_where_they_are_stored(ops):
    driver = Driver(Oracle(24), ops, 3)
    driver.prefill([70, 44, 3])
    fork = driver.layer.fork(Oracle(24))  # its open pages are copies, which lie elsewhere
    for _ in range(2 * PAGE):
        _, k, v = driver.entries(1)
        fork.append(k, v)
    driver.layer.append(k, v)
    assert len(list(fork.pages.runs(0))) > 1
    q = driver.entries(1)[0][:, :, 0]
    for layer in (driver.layer, fork):
        layer.pool.k[layer.pages.owned[0][-1], :, layer.held[0] % PAGE :] = torch.nan  # what was never stored
        scores = Oracle(24).page_scores(q, layer)
        assert scores.shape == (3, HEADS, layer.page_table.shape[1])
        for row in range(3):
            keys = layer.keys(row).float().repeat_interleave(GROUP, dim=0)
            products = (keys @ q[row].float()[..., None])[..., 0]
            pages = [part.amax(1) for part in products.split(PAGE, dim=1)]
            torch.testing.assert_close(scores[row, :, : len(pages)], torch.stack(pages, dim=1))
            assert scores[row, :, len(pages) :].eq(-torch.inf).all()


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
