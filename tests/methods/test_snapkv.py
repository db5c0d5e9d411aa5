"""SnapKV against its algorithm in float64, written out per query head and entry; in parts, in batches, in turns."""

import itertools

import pytest
import torch
from core_helpers import HEAD_DIM, PAGE, SCORING, Counter, Driver

from questbench import attention
from questbench.cache.owned import OwnedPages
from questbench.errors import UsageError
from questbench.methods.dense import Dense
from questbench.methods.snapkv import SnapKV


class Written:
    """One row: keys, values and positions per KV head, oldest first, in float64."""

    def __init__(self, method, kv_heads, group):
        self.method, self.group = method, group
        self.k = self.v = torch.zeros((kv_heads, 0, HEAD_DIM), dtype=torch.float64)
        self.place = torch.zeros((kv_heads, 0), dtype=torch.long)
        self.seen = 0

    def forward(self, q, k, v, prompt):
        q, new = q.double(), k.shape[1]
        self.k, self.v = torch.cat([self.k, k.double()], dim=1), torch.cat([self.v, v.double()], dim=1)
        place = torch.arange(self.seen, self.seen + new).expand(len(self.place), new)
        self.place, self.seen = torch.cat([self.place, place], dim=1), self.seen + new
        total = self.k.shape[1]
        causal = torch.ones((new, total)).tril(total - new).bool()
        keys, values = (x.repeat_interleave(self.group, dim=0) for x in (self.k, self.v))
        p = torch.softmax((q @ keys.transpose(1, 2) / HEAD_DIM**0.5).masked_fill(~causal, -torch.inf), dim=-1)
        if prompt and total > self.method.budget - 1:
            self.compress(p[:, -self.method.window :], total)
        return (p @ values).float()

    def compress(self, p, total):
        window, reach = self.method.window, self.method.kernel // 2
        votes = p.sum(1).view(len(self.place), self.group, total).sum(1)[:, : total - window]
        keep = []
        for head in votes:
            pooled = []
            for entry in range(len(head)):
                near = head[max(entry - reach, 0) : entry + reach + 1]
                pooled.append(near.max() if self.method.pooling == "max" else near.sum() / self.method.kernel)
            # Of equal votes, which the maximum makes, the newer entries stay.
            order = torch.stack(pooled).flip(0).sort(descending=True, stable=True).indices
            best = (len(pooled) - 1 - order[: self.method.budget - 1 - window]).sort().values
            keep.append(torch.cat([best, torch.arange(total - window, total)]))
        index = torch.stack(keep)
        wide = index[..., None].expand(-1, -1, HEAD_DIM)
        self.k, self.v, self.place = self.k.gather(1, wide), self.v.gather(1, wide), self.place.gather(1, index)


def feed(layer, q, k, v, scoring, lengths=None, parts=1):
    """A prompt, in one piece or several."""
    outs, edges = [], [round(q.shape[2] * part / parts) for part in range(parts + 1)]
    for start, stop in itertools.pairwise(edges):
        new = None if lengths is None else [min(stop - start, max(stop - q.shape[2] + own, 0)) for own in lengths]
        mine = [x[:, :, start:stop] for x in (q, k, v)]
        layer.append(*mine[1:], new)
        outs.append(attention.prefill(layer, *mine, scoring, new, resumed=start > 0, more=stop < edges[-1]))
    layer.end_prefill()
    return torch.cat(outs, dim=2)


@pytest.mark.every_pair
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (8, 1)])
@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("parts", [1, 3, 9])
def test_equals_the_algorithm(ops, heads, kv_heads, pooling, parts):
    """Rows of unequal length with padding; the last one fits the budget. A window may span parts of a prompt."""
    method, lengths = SnapKV(24, window=8, kernel=5, pooling=pooling), [61, 33, 9]
    driver = Driver(method, ops, 3, heads=heads, kv_heads=kv_heads)
    rows = [Written(method, kv_heads, heads // kv_heads) for _ in lengths]
    q, k, v = driver.entries(61)
    out = feed(driver.layer, q, k, v, driver.scoring, lengths, parts)
    for row, length in enumerate(lengths):
        want = rows[row].forward(q[row, :, -length:], k[row, :, -length:], v[row, :, -length:], prompt=True)
        torch.testing.assert_close(out[row, :, -length:], want, rtol=1e-4, atol=1e-5)
    for _ in range(2 * PAGE + 3):
        for row, written in enumerate(rows):
            assert torch.equal(driver.layer.places(row).long(), written.place)
        q, k, v = driver.entries(1)
        driver.layer.append(k, v)
        out = attention.decode(driver.layer, q[:, :, 0].contiguous(), driver.scoring)
        for row, written in enumerate(rows):
            want = written.forward(q[row], k[row], v[row], prompt=False)
            torch.testing.assert_close(out[row], want[:, 0], rtol=1e-4, atol=1e-5)


def test_turns_compress_again(ops):
    """Prompts of 40, 12 and 3 tokens with steps in between; the last has fewer queries than the window."""
    method = SnapKV(20, window=6, kernel=3)
    driver, written = Driver(method, ops, 1), Written(method, 2, 2)
    for count in (40, 1, 1, 12, 1, 3, 1, 1):
        q, k, v = driver.entries(count)
        if count > 1:
            out = feed(driver.layer, q, k, v, driver.scoring)
        else:
            driver.layer.append(k, v)
            out = attention.decode(driver.layer, q[:, :, 0].contiguous(), driver.scoring)[:, :, None]
        torch.testing.assert_close(out[0], written.forward(q[0], k[0], v[0], count > 1), rtol=1e-4, atol=1e-5)
        assert torch.equal(driver.layer.places(0).long(), written.place)
        assert count == 1 or driver.layer.held == [19]


def test_a_fork_keeps_what_a_prefill_of_its_own_keeps(ops):
    method, lengths = SnapKV(24, window=8), [61, 33]
    base, direct = Driver(Dense(), ops, 2), Driver(method, ops, 2)
    base.prefill(lengths, frozenset({8}))
    direct.prefill(lengths)
    twin = base.layer.fork(method)
    twin.end_prefill()
    assert all(torch.equal(twin.places(row), direct.layer.places(row)) for row in range(2))
    assert base.layer.held == lengths
    short = Driver(Dense(), ops, 2)
    short.prefill(lengths, frozenset({7}))
    with pytest.raises(ValueError, match="last 8 queries"):
        short.layer.fork(method).end_prefill()


def test_a_fork_judges_for_itself(ops):
    """Nothing was dropped yet, and the votes are those of another kernel."""
    long, short = SnapKV(200, window=8, kernel=1), SnapKV(24, window=8, kernel=9)
    driver, direct = Driver(long, ops, 1), Driver(short, ops, 1)
    driver.prefill([61])
    direct.prefill([61])
    twin = driver.layer.fork(short)
    twin.end_prefill()
    assert twin.held == [23] and torch.equal(twin.places(0), direct.layer.places(0))


def test_what_is_visible_grows_with_what_is_generated(ops):
    method, counter = SnapKV(24, window=8), Counter()
    driver = Driver(method, ops, 1, observer=counter)
    driver.prefill([60])
    for step in range(1, 13):
        driver.step()
        expected = method.tokens_visible(60 + step, PAGE, generated=step)
        assert counter.read[-1][0].tolist() == [expected] * 2 and counter.resident[-1] == [expected] == [23 + step]
    assert method.tokens_visible(61, PAGE) == method.budget == method.tokens_resident(61)


def test_generated_tokens_can_be_taken_back_but_not_the_prompt(ops):
    driver = Driver(SnapKV(24, window=8), ops, 1)
    driver.prefill([60])
    outs = []
    for _ in range(2):
        driver.generator.manual_seed(5)
        outs.append(torch.stack([driver.step() for _ in range(5)]))
        driver.layer.rewind(23)
    assert torch.equal(*outs) and driver.layer.seen == [60]
    with pytest.raises(ValueError, match="cannot go back"):
        driver.layer.rewind(22)


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="at least 34"):
        SnapKV(33).check(16)
    for wrong in ({"kernel": 4}, {"window": 0}):
        with pytest.raises(UsageError, match="odd kernel"):
            SnapKV(64, **wrong).check(16)
    SnapKV(34).check(16)


def test_a_window_that_lacks_queries_is_not_collected(ops):
    driver = Driver(Dense(), ops, 1)
    driver.prefill([37], frozenset({8}))
    assert 8 in driver.layer.prefill_mass
    driver.layer.forget_prompt()
    q, k, v = driver.entries(1)
    driver.layer.append(k, v)
    attention.decode(driver.layer, q[:, :, 0].contiguous(), SCORING, collect=frozenset({8}))
    assert not driver.layer.prefill_mass and driver.layer.tail is None


def test_votes_are_counted_without_the_values(ops, monkeypatch):
    """What only keys decide copies no values: of 32k entries they are as large as the keys."""
    copied = []
    gather = OwnedPages.gather
    monkeypatch.setattr(OwnedPages, "gather", lambda self, *given: copied.append(given[2]) or gather(self, *given))
    driver = Driver(Dense(), ops, 1)
    driver.prefill([37], frozenset({8}))
    assert 8 in driver.layer.prefill_mass
    assert [one is driver.layer.pool.k for one in copied] == [True]
