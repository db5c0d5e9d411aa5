"""Twilight against its algorithm in float64, written out per head and entry; its codes go where the cache goes."""

import math

import pytest
import torch
from core_helpers import HEAD_DIM, HEADS, KV_HEADS, PAGE, Counter, Driver, run

from questbench.attention import Scoring
from questbench.errors import UsageError
from questbench.kernels._codes import quantized
from questbench.methods._base import CacheShape
from questbench.methods.dense import Dense
from questbench.methods.quest import Quest
from questbench.methods.twilight import Twilight

GROUP = HEADS // KV_HEADS


def near(keys):
    """Keys as four bits tell them, entry by entry."""
    out = torch.empty(keys.shape, dtype=torch.float64)
    for at, key in enumerate(keys.double()):
        step = (key.max() - key.min()) / 15
        out[at] = key.min() + step * ((key - key.min()) / step).round()
    return out


def candidates(q, keys, count):
    """Slots of the newest page and of the best others, by the bounds of their keys."""
    pages = -(-len(keys) // PAGE)
    if pages <= count:
        return list(range(len(keys)))
    weights = torch.zeros(pages - 1, dtype=torch.float64)
    for own in q.double():
        inside = [keys[page * PAGE : (page + 1) * PAGE].double() for page in range(pages - 1)]
        scores = torch.stack([torch.maximum(own * page.amax(0), own * page.amin(0)).sum() for page in inside])
        weights += torch.softmax(scores * HEAD_DIM**-0.5, dim=0)
    best = [*sorted(weights.topk(count - 1).indices.tolist()), pages - 1]
    return [slot for page in best for slot in range(page * PAGE, min((page + 1) * PAGE, len(keys)))]


def chosen(q, keys, method):
    """The entries that one list's query heads ``[g, D]`` read, and how near the mass came to another set."""
    slots = candidates(q, keys, method.budget // PAGE)
    logits = q.double() @ near(keys[slots]).T * HEAD_DIM**-0.5
    mass = torch.softmax(logits, dim=1).mean(0)
    order = mass.argsort(descending=True)
    sums = mass[order].cumsum(0)
    fewest = int((sums < method.p).sum()) + 1
    margin = float((sums - method.p).abs().min())
    return sorted(slots[at] for at in order[:fewest].tolist()), margin


@pytest.mark.parametrize("select_by", ["kv_head", "q_head"])
@pytest.mark.parametrize("budget", [32, 512])
def test_it_reads_what_the_algorithm_says(ops, select_by, budget):
    method = Twilight(budget, p=0.7, select_by=select_by)
    compared = 0
    for seed in range(4):
        counter = Counter()
        driver = Driver(method, ops, 1, observer=counter, seed=seed)
        driver.prefill([82])
        q, _, _ = driver.entries(1)
        driver = Driver(method, ops, 1, observer=counter, seed=seed)
        driver.prefill([82])
        out = driver.step()[0]
        keys, values = driver.layer.gather(0)
        for head in range(KV_HEADS):
            queries = q[0, head * GROUP : (head + 1) * GROUP, 0]
            lists = [queries] if select_by == "kv_head" else list(queries.split(1))
            found = [chosen(own, keys[head], method) for own in lists]
            if min(margin for _, margin in found) < 1e-5:
                continue
            compared += 1
            visits = torch.zeros(83, dtype=torch.int32)
            for entries, _ in found:
                visits[entries] += GROUP // len(found)
            assert torch.equal(counter.visits[-1][0, head, :83], visits)
            for at, own in enumerate(queries):
                entries = found[at if len(found) > 1 else 0][0]
                p = torch.softmax(keys[head, entries].double() @ own.double() * HEAD_DIM**-0.5, dim=0)
                want = p @ values[head, entries].double()
                assert torch.allclose(out[head * GROUP + at].double(), want, atol=1e-5)
    assert compared >= 6


def test_p_of_one_is_quest_and_less_reads_less(ops):
    quest, _ = run(Quest(32), ops, [50, 7], 4)
    all_of_it, _ = run(Twilight(32, p=1.0), ops, [50, 7], 4)
    assert torch.allclose(quest, all_of_it, atol=1e-6)
    read = []
    for p in (1.0, 0.9, 0.5):
        counter = Counter()
        run(Twilight(32, p=p), ops, [50, 7], 4, observer=counter)
        read.append(sum(int(step.sum()) for step in counter.read))
    assert read[0] > read[1] > read[2] > 0


def test_the_scale_and_the_cap_of_the_model_count(ops):
    flat, sharp = (
        sum(int(step.sum()) for step in counter.read)
        for counter in (
            run(Twilight(64, p=0.8), ops, [60], 3, observer=watching, scoring=scoring)[1].observer
            for watching, scoring in ((Counter(), Scoring(0.01)), (Counter(), Scoring(0.3)))
        )
    )
    assert flat > 2 * sharp
    capped = run(Twilight(64, p=0.8), ops, [60], 3, observer=Counter(), scoring=Scoring(0.3, softcap=0.1))[1].observer
    assert sum(int(step.sum()) for step in capped.read) > 2 * sharp


def right(layer) -> bool:
    """Whether the codes are those of the keys that the cache holds."""
    for row, held in enumerate(layer.held):
        codes, ranges = quantized(layer.gather(row)[0].float())
        own = layer.state.codes[row, :, :held], layer.state.ranges[row, :, :held]
        if not (torch.equal(own[0], codes) and torch.equal(own[1], ranges)):
            return False
    return True


@pytest.mark.parametrize("page_size", [None, 16])
def test_codes_are_made_for_a_fork_and_copied_with_one(ops, page_size):
    driver = Driver(Dense(), ops, 2, bounds=True)
    driver.prefill([30, 9])
    fork = driver.layer.fork(Twilight(16), page_size=page_size)
    assert right(fork)
    driver.layer = fork
    driver.step()
    twin = fork.fork(Twilight(16))
    for layer in (twin, fork):
        driver.layer = layer
        for _ in range(9):
            driver.step()
        assert right(twin) and right(fork)
    assert not torch.equal(twin.gather(0)[0], fork.gather(0)[0])


def test_codes_follow_rewound_and_selected_rows(ops):
    driver = Driver(Twilight(16), ops, 3)
    driver.prefill([20, 5, 11])
    for _ in range(3):
        driver.step()
    driver.layer.rewind([21, 6, 14])
    assert right(driver.layer)
    driver.rows = 2
    driver.layer.select_rows(torch.tensor([2, 0]))
    driver.step()
    assert driver.layer.held == [15, 22] and right(driver.layer)


def test_codes_are_counted_with_the_cache(ops):
    plain, own = Driver(Quest(16), ops, 2), Driver(Twilight(16), ops, 2)
    for driver in (plain, own):
        driver.prefill([20, 5])
    more = own.layer.bytes[0] - plain.layer.bytes[0]
    assert more == 25 * KV_HEADS * (HEAD_DIM // 2 + 8)


def test_traffic():
    shape = CacheShape(8, 2, 64, 16, 2)
    method, quest = Twilight(64, p=0.9), Quest(64)
    codes = 2 * (32 + 8)
    assert method.bytes_read(100, shape) == quest.bytes_read(100, shape) + quest.tokens_visible(100, 16) * codes
    less = method.bytes_read(100, shape) - method.bytes_counted(100, shape, 10.5)
    assert less == round((quest.tokens_visible(100, 16) - 10.5) * shape.entry_bytes)
    apart = Twilight(64, select_by="q_head")
    assert apart.bytes_read(100, shape) == Quest(64, select_by="q_head").bytes_read(100, shape) + 100 * codes
    assert Quest(64).bytes_counted(100, shape, 3) == Quest(64).bytes_read(100, shape)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="below one page"):
        Twilight(8).check(16)
    for p in (0.0, 1.5, math.nan):
        with pytest.raises(UsageError, match="share of the attention mass"):
            Twilight(p=p).check(16)
