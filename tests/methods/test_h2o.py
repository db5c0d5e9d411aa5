"""H2O against the real-drop algorithm, written out with sorted lists and concatenation."""

import pytest
import torch
from core_helpers import HEAD_DIM, Driver

from questbench import attention
from questbench.attention import Scoring
from questbench.methods.h2o import H2O


class Written:
    """One row. Entries stand oldest first, per KV head; ``acc`` is the running sum of attention."""

    def __init__(self, budget, kv_heads, group, judge_prefill):
        self.heavy, self.recent = budget // 2, budget - 1 - budget // 2
        self.group, self.judge_prefill = group, judge_prefill
        self.k = self.v = torch.zeros((kv_heads, 0, HEAD_DIM))
        self.acc = torch.zeros((kv_heads, 0))
        self.place = torch.zeros((kv_heads, 0), dtype=torch.long)
        self.seen = 0

    def forward(self, q, k, v, prompt):
        new, kv_heads = k.shape[1], k.shape[0]
        self.k, self.v = torch.cat([self.k, k], dim=1), torch.cat([self.v, v], dim=1)
        self.acc = torch.cat([self.acc, torch.zeros((kv_heads, new))], dim=1)
        place = torch.arange(self.seen, self.seen + new).expand(kv_heads, new)
        self.place, self.seen = torch.cat([self.place, place], dim=1), self.seen + new
        total = self.k.shape[1]
        out = torch.zeros_like(q)
        causal = torch.ones((new, total)).tril(total - new).bool()
        for head in range(q.shape[0]):
            logits = q[head] @ self.k[head // self.group].T / HEAD_DIM**0.5
            p = torch.softmax(logits.masked_fill(~causal, -torch.inf), dim=-1)
            out[head] = p @ self.v[head // self.group]
            if self.judge_prefill or not prompt:
                self.acc[head // self.group] += p.sum(0)
        if total > self.heavy + self.recent and (self.judge_prefill or not prompt):
            self.evict(total)
        return out

    def evict(self, total):
        window = torch.arange(total - self.recent, total)
        keep = []
        for acc in self.acc:
            heaviest = acc[: total - self.recent].topk(self.heavy).indices.sort().values
            keep.append(torch.cat([heaviest, window]))
        index = torch.stack(keep)
        wide = index[..., None].expand(-1, -1, HEAD_DIM)
        self.k, self.v = self.k.gather(1, wide), self.v.gather(1, wide)
        self.acc, self.place = self.acc.gather(1, index), self.place.gather(1, index)


@pytest.mark.every_pair
@pytest.mark.parametrize("score_from", ["prefill", "decode"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (8, 1)])
@pytest.mark.parametrize("budget", [16, 17])
def test_equals_the_algorithm_over_30_steps(ops, heads, kv_heads, budget, score_from):
    lengths = [33, 9]
    driver = Driver(H2O(budget, score_from=score_from), ops, 2, heads=heads, kv_heads=kv_heads)
    rows = [Written(budget, kv_heads, heads // kv_heads, score_from == "prefill") for _ in lengths]
    q, k, v = driver.entries(33)
    driver.layer.append(k, v, lengths)
    attention.prefill(driver.layer, q, k, v, driver.scoring, lengths)
    driver.layer.end_prefill()
    for row, length in enumerate(lengths):
        rows[row].forward(q[row, :, -length:], k[row, :, -length:], v[row, :, -length:], prompt=True)
    for _ in range(30):
        q, k, v = driver.entries(1)
        driver.layer.append(k, v)
        out = attention.decode(driver.layer, q[:, :, 0].contiguous(), driver.scoring)
        for row, written in enumerate(rows):
            expected = written.forward(q[row], k[row], v[row], prompt=False)
            torch.testing.assert_close(out[row], expected[:, 0], rtol=1e-4, atol=1e-5)
            held = driver.layer.held[row]
            places = driver.layer.positions[row, :, :held].sort(dim=1)
            assert torch.equal(places.values.long(), written.place)
            mass = driver.layer.mass[row, :, :held].gather(1, places.indices)
            torch.testing.assert_close(mass, written.acc, rtol=1e-4, atol=1e-5)


def test_a_later_turn_adds_to_the_sums(ops):
    """Several tokens behind a filled cache: their probabilities add up, nothing starts again from zero."""
    driver, written = Driver(H2O(16), ops, 1), Written(16, 2, 2, True)
    for count in (40, 1, 7, 1, 1, 5, 1):
        q, k, v = driver.entries(count)
        driver.layer.append(k, v)
        if count == 1:
            out = attention.decode(driver.layer, q[:, :, 0].contiguous(), Scoring(HEAD_DIM**-0.5))[:, :, None]
        else:
            out = attention.prefill(driver.layer, q, k, v, driver.scoring)
            driver.layer.end_prefill()
        expected = written.forward(q[0], k[0], v[0], prompt=count > 1)
        torch.testing.assert_close(out[0], expected, rtol=1e-4, atol=1e-5)
        places = driver.layer.positions[0, :, : driver.layer.held[0]].sort(dim=1).values
        assert torch.equal(places.long(), written.place)
