"""TOVA against its algorithm, written out with concatenation and top-k."""

import pytest
import torch
from core_helpers import HEAD_DIM, Driver

from questbench import attention
from questbench.methods.tova import TOVA


class Written:
    """One row: the same entries for all KV heads of the layer, chosen by the newest query alone."""

    def __init__(self, budget, kv_heads, group):
        self.capacity, self.group = budget - 1, group
        self.k = self.v = torch.zeros((kv_heads, 0, HEAD_DIM))
        self.place = torch.zeros(0, dtype=torch.long)
        self.seen = 0

    def forward(self, q, k, v):
        new = k.shape[1]
        self.k, self.v = torch.cat([self.k, k], dim=1), torch.cat([self.v, v], dim=1)
        self.place = torch.cat([self.place, torch.arange(self.seen, self.seen + new)])
        self.seen += new
        total = self.k.shape[1]
        causal = torch.ones((new, total)).tril(total - new).bool()
        wide_k, wide_v = (x.repeat_interleave(self.group, dim=0) for x in (self.k, self.v))
        logits = (q @ wide_k.transpose(1, 2) / HEAD_DIM**0.5).masked_fill(~causal, -torch.inf)
        p = torch.softmax(logits, dim=-1)
        if total > self.capacity:
            keep = p[:, -1].mean(0).topk(self.capacity).indices.sort().values
            self.k, self.v, self.place = self.k[:, keep], self.v[:, keep], self.place[keep]
        return p @ wide_v


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (8, 1)])
def test_equals_the_algorithm_over_30_steps(ops, heads, kv_heads):
    lengths = [33, 9]
    driver = Driver(TOVA(16), ops, 2, heads=heads, kv_heads=kv_heads)
    rows = [Written(16, kv_heads, heads // kv_heads) for _ in lengths]
    q, k, v = driver.entries(33)
    driver.layer.append(k, v, lengths)
    attention.prefill(driver.layer, q, k, v, driver.scoring, lengths)
    driver.layer.end_prefill()
    for row, length in enumerate(lengths):
        rows[row].forward(q[row, :, -length:], k[row, :, -length:], v[row, :, -length:])
    for _ in range(30):
        q, k, v = driver.entries(1)
        driver.layer.append(k, v)
        out = attention.decode(driver.layer, q[:, :, 0].contiguous(), driver.scoring)
        for row, written in enumerate(rows):
            expected = written.forward(q[row], k[row], v[row])
            torch.testing.assert_close(out[row], expected[:, 0], rtol=1e-4, atol=1e-5)
            held = driver.layer.held[row]
            for places in driver.layer.positions[row, :, :held]:
                assert torch.equal(places.sort().values.long(), written.place)


def test_drops_at_most_one_entry_per_step(ops):
    driver = Driver(TOVA(16), ops, 1)
    driver.prefill([40])
    before = set(driver.layer.positions[0, 0, : driver.layer.held[0]].tolist())
    for _ in range(10):
        driver.step()
        after = set(driver.layer.positions[0, 0, : driver.layer.held[0]].tolist())
        assert len(before - after) <= 1
        before = after
