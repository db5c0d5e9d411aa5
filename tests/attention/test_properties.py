"""What must hold of every method on every backend, whatever the numbers are."""

import pytest
import torch
from core_helpers import (
    EVICTING,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    NAMES,
    PAGE,
    SCORING,
    Counter,
    Driver,
    run,
    same,
    sparse_methods,
    state,
)

from questbench import attention
from questbench.attention import Scoring
from questbench.methods.dense import Dense
from questbench.methods.quest import Quest
from questbench.methods.tova import TOVA

LENGTHS = [37, 20, 55]


@pytest.mark.parametrize("name", NAMES)
def test_a_text_that_fits_the_budget_is_dense(name, ops):
    sparse, _ = run(sparse_methods(64)[name], ops, LENGTHS, 9)
    dense, _ = run(Dense(), ops, LENGTHS, 9)
    torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_longer_text_is_not(name, ops):
    sparse, _ = run(sparse_methods(24)[name], ops, LENGTHS, 9)
    dense, _ = run(Dense(), ops, LENGTHS, 9)
    assert (sparse - dense).abs().max() > 1e-2


def test_a_page_s_score_bounds_every_product_in_it(ops):
    driver = Driver(Quest(16), ops, 3)
    driver.prefill(LENGTHS)
    for _ in range(5):
        driver.step()
        layer, q = driver.layer, driver.entries(1)[0][:, :, 0].contiguous()
        scores = ops.score(q, layer.paged, skip_newest=False)
        for row in range(3):
            keys = layer.gather(row)[0].repeat_interleave(HEADS // KV_HEADS, dim=0)
            products = (keys @ q[row][..., None])[..., 0]
            for page in range(-(-layer.held[row] // PAGE)):
                best = products[:, page * PAGE : (page + 1) * PAGE].amax(-1)
                assert (scores[row, :, page] >= best - 1e-4).all()


@pytest.mark.parametrize("name", EVICTING)
def test_eviction_commutes_with_a_permutation_of_the_batch(name, ops):
    order = [2, 0, 1]
    straight = Driver(sparse_methods(24)[name], ops, 3)
    shuffled = Driver(sparse_methods(24)[name], ops, 3)
    rounds = [straight.entries(55)] + [straight.entries(1) for _ in range(12)]
    for driver, rows in ((straight, [0, 1, 2]), (shuffled, order)):
        lengths = [LENGTHS[row] for row in rows]
        q, k, v = (x[rows] for x in rounds[0])
        driver.layer.append(k, v, lengths)
        attention.prefill(driver.layer, q, k, v, SCORING, lengths)
        driver.layer.end_prefill()
        for step in rounds[1:]:
            q, k, v = (x[rows] for x in step)
            driver.layer.append(k, v)
            attention.decode(driver.layer, q[:, :, 0].contiguous(), SCORING)
    for new, old in enumerate(order):
        for one, other in zip(straight.layer.gather(old), shuffled.layer.gather(new), strict=True):
            assert torch.equal(one, other)
        held = straight.layer.held[old]
        assert torch.equal(straight.layer.positions[old, :, :held], shuffled.layer.positions[new, :, :held])


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_its_neighbours(name, ops):
    together = Driver(sparse_methods(24)[name], ops, 3)
    rounds = [together.entries(55)] + [together.entries(1) for _ in range(9)]

    def play(rows: list[int]) -> torch.Tensor:
        driver, lengths = Driver(sparse_methods(24)[name], ops, len(rows)), [LENGTHS[row] for row in rows]
        q, k, v = (x[rows][:, :, 55 - max(lengths) :] for x in rounds[0])
        driver.layer.append(k, v, lengths)
        attention.prefill(driver.layer, q, k, v, SCORING, lengths)
        driver.layer.end_prefill()
        out = []
        for step in rounds[1:]:
            q, k, v = (x[rows] for x in step)
            driver.layer.append(k, v)
            out.append(attention.decode(driver.layer, q[:, :, 0].contiguous(), SCORING))
        return torch.stack(out)

    batch = play([0, 1, 2])
    for row in range(3):
        torch.testing.assert_close(batch[:, row], play([row])[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EVICTING)
def test_seen_is_monotone_and_no_position_is_held_twice(name, ops):
    driver = Driver(sparse_methods(24)[name], ops, 2)
    driver.prefill([40, 13])
    before = list(driver.layer.seen)
    for _ in range(20):
        driver.step()
        layer = driver.layer
        assert all(new == old + 1 for new, old in zip(layer.seen, before, strict=True))
        before = list(layer.seen)
        for row in range(2):
            for head in range(KV_HEADS):
                place = layer.positions[row, head, : layer.held[row]].tolist()
                assert len(set(place)) == len(place) and max(place) < layer.seen[row]


def test_a_window_is_always_resident(ops):
    for name, recent in (("h2o", 11), ("streaming_llm", 19)):
        driver = Driver(sparse_methods(24)[name], ops, 1)
        driver.prefill([60])
        for _ in range(15):
            driver.step()
            newest = set(range(driver.layer.seen[0] - recent, driver.layer.seen[0]))
            for head in range(KV_HEADS):
                assert newest <= set(driver.layer.positions[0, head, : driver.layer.held[0]].tolist())


def test_a_later_turn_continues_the_first(ops):
    """Dense: a prompt in two parts equals the prompt in one."""
    whole, parts = Driver(Dense(), ops, 2), Driver(Dense(), ops, 2)
    q, k, v = whole.entries(30)
    whole.layer.append(k, v)
    full = attention.prefill(whole.layer, q, k, v, SCORING)
    for part in (slice(0, 19), slice(19, 30)):
        parts.layer.append(k[:, :, part], v[:, :, part])
        got = attention.prefill(parts.layer, q[:, :, part], k[:, :, part], v[:, :, part], SCORING)
        torch.testing.assert_close(got, full[:, :, part], rtol=1e-5, atol=1e-6)
    assert same(state(whole.layer), state(parts.layer))


@pytest.mark.parametrize("scoring", [SCORING, Scoring(0.1, softcap=5.0), Scoring(0.1, sinks=torch.ones(HEADS))])
def test_prefill_equals_decoding_token_by_token(ops, scoring):
    at_once, stepwise = Driver(Dense(), ops, 2, scoring=scoring), Driver(Dense(), ops, 2, scoring=scoring)
    q, k, v = at_once.entries(21)
    at_once.layer.append(k, v)
    full = attention.prefill(at_once.layer, q, k, v, scoring)
    for place in range(21):
        part = slice(place, place + 1)
        stepwise.layer.append(k[:, :, part], v[:, :, part])
        out = attention.decode(stepwise.layer, q[:, :, place].contiguous(), scoring)
        torch.testing.assert_close(out, full[:, :, place], rtol=1e-5, atol=1e-6)


def test_collected_mass_is_the_sum_of_probabilities(ops):
    driver = Driver(Dense(), ops, 2)
    driver.prefill([33, 12], frozenset({1, "sum"}))
    mass = driver.layer.prefill_mass
    group = HEADS // KV_HEADS
    for row, length in enumerate([33, 12]):
        torch.testing.assert_close(mass[1][row].sum(-1), torch.full((KV_HEADS,), float(group)))
        torch.testing.assert_close(mass["sum"][row].sum(-1), torch.full((KV_HEADS,), float(group * length)))
        assert (mass["sum"][row, :, length:] == 0).all()


def test_an_empty_row_is_legal(ops):
    counter = Counter()
    driver = Driver(TOVA(16), ops, 2, observer=counter)
    driver.prefill([30, 0])
    for _ in range(20):
        assert driver.step().isfinite().all()
    assert driver.layer.seen == [50, 20] and driver.layer.held == [15, 15]
    assert driver.layer.head_dim == HEAD_DIM
