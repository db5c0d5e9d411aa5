"""Quest's two variants and three ways of sharing a list, against the paper's algorithm on plain tensors."""

import pytest
import torch
from core_helpers import HEAD_DIM, HEADS, KV_HEADS, PAGE, Counter, Driver

from questbench.errors import UsageError
from questbench.methods._base import CacheShape
from questbench.methods.quest import Quest

GROUP = HEADS // KV_HEADS
LENGTH = 83


def page_scores(q, keys, pages):
    """Section 3.3, per query head: ``[Hq, pages]``."""
    scores = torch.zeros((HEADS, pages))
    for head in range(HEADS):
        for page in range(pages):
            inside = keys[head // GROUP, page * PAGE : (page + 1) * PAGE]
            high, low = inside.amax(0), inside.amin(0)
            scores[head, page] = torch.maximum(q[head] * high, q[head] * low).sum()
    return scores


def one_step(method, ops, seed=0):
    """The query, the keys and what each slot was visited for in a single decode step."""
    counter = Counter()
    driver = Driver(method, ops, 1, observer=counter, seed=seed)
    driver.prefill([LENGTH - 1])
    driver.generator.manual_seed(seed + 100)
    driver.step()
    replay = torch.Generator().manual_seed(seed + 100)
    wide = torch.randn((1, HEADS + 2 * KV_HEADS, 1, HEAD_DIM), generator=replay, dtype=torch.float64).float()
    return 2 * wide[0, :HEADS, 0], driver.layer.gather(0)[0], counter.visits[0][0, :, :LENGTH]


def pages_of(visits):
    """Pages with any visit, per KV head."""
    return [sorted({slot // PAGE for slot in row.nonzero()[:, 0].tolist()}) for row in visits]


@pytest.mark.parametrize("merge", ["sum_softmax", "max"])
@pytest.mark.parametrize("seed", range(3))
def test_kernel_variant_takes_the_best_pages_and_the_newest(ops, merge, seed):
    q, keys, visits = one_step(Quest(32, group_merge=merge), ops, seed)
    newest = (LENGTH - 1) // PAGE
    scores = page_scores(q, keys, newest).view(KV_HEADS, GROUP, newest)
    merged = scores.amax(1) if merge == "max" else torch.softmax(scores / HEAD_DIM**0.5, dim=-1).sum(1)
    expected = [sorted([*row.topk(3).indices.tolist(), newest]) for row in merged]
    assert pages_of(visits) == expected
    assert set(visits[visits > 0].tolist()) == {GROUP}


@pytest.mark.parametrize("seed", range(3))
def test_a_list_per_query_head(ops, seed):
    q, keys, visits = one_step(Quest(32, select_by="q_head"), ops, seed)
    newest = (LENGTH - 1) // PAGE
    best = page_scores(q, keys, newest).topk(3).indices
    expected = torch.zeros_like(visits)
    for head in range(HEADS):
        for page in [*best[head].tolist(), newest]:
            expected[head // GROUP, page * PAGE : (page + 1) * PAGE] += 1
    assert torch.equal(visits, expected)


@pytest.mark.parametrize("seed", range(3))
def test_eval_variant_lets_the_newest_page_compete(ops, seed):
    q, keys, visits = one_step(Quest(32, variant="eval"), ops, seed)
    best = page_scores(q, keys, -(-LENGTH // PAGE)).topk(4).indices
    expected = torch.zeros_like(visits)
    for head in range(HEADS):
        for page in best[head].tolist():
            expected[head // GROUP, page * PAGE : (page + 1) * PAGE] += 1
    assert torch.equal(visits, expected)


def test_with_one_query_head_per_kv_head_all_lists_agree(ops):
    visits = []
    for method in (Quest(32), Quest(32, select_by="q_head"), Quest(32, group_merge="max")):
        counter = Counter()
        driver = Driver(method, ops, 1, observer=counter, heads=2, kv_heads=2)
        driver.prefill([LENGTH])
        driver.step()
        visits.append(counter.visits[0])
    assert torch.equal(visits[0], visits[1]) and torch.equal(visits[0], visits[2])


def test_records_say_what_was_effective():
    assert Quest(100).arguments(16) == {
        "budget": 96,
        "variant": "kernel",
        "select_by": "kv_head",
        "group_merge": "sum_softmax",
    }
    assert Quest(100, variant="eval").arguments(16)["select_by"] == "q_head"
    with pytest.raises(UsageError, match="below one page"):
        Quest(8).check(16)


def test_predicted_traffic_is_one_page_bound_per_page_and_the_budget():
    shape = CacheShape(query_heads=8, kv_heads=2, head_dim=64, page_size=16, element_bytes=2)
    length, entry = 32768, 2 * 2 * 64 * 2
    assert Quest(2048).bytes_read(length, shape) == entry * (2048 + length // 16 - 1)
    assert Quest(2048).bytes_read(1024, shape) == entry * 1024


def test_the_accuracy_code_s_rules_take_a_budget_below_a_page():
    """It reads three pages at any budget, and the record says so."""
    method = Quest(PAGE // 2, variant="eval")
    method.check(PAGE)
    assert method.arguments(PAGE)["budget"] == 3 * PAGE
    assert method.tokens_visible(LENGTH, PAGE) == 3 * PAGE
    assert Quest(5 * PAGE + 1, variant="eval").arguments(PAGE)["budget"] == 5 * PAGE
    with pytest.raises(UsageError, match="below one page"):
        Quest(PAGE // 2).check(PAGE)


def test_a_budget_below_a_page_reads_three_pages(ops):
    _, _, visits = one_step(Quest(PAGE // 2, variant="eval"), ops)
    assert all(3 <= len(pages) <= 3 * GROUP for pages in pages_of(visits))


@pytest.mark.parametrize("start", range(PAGE - 1, PAGE + 2))
def test_a_frozen_layer_reads_enough_pages_at_page_boundaries(start, ops):
    """Its host's count lags behind the device's by a step; the lists must be wide enough all the same."""
    from questbench import attention

    outputs = []
    for static in (False, True):
        driver = Driver(Quest(6 * PAGE, variant="eval"), ops, 2)
        driver.prefill([3 * PAGE + start, 2 * PAGE + start])
        layer = driver.layer
        if static:
            layer.freeze(2 * PAGE)
        made = []
        for _ in range(2 * PAGE):
            q, k, v = driver.entries(1)
            layer.append(k, v)
            made.append(attention.decode(layer, q[:, :, 0].contiguous(), driver.scoring))
            if static:
                layer.advance()
        outputs.append(torch.stack(made))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
