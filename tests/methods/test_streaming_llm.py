"""StreamingLLM against the original's way: keys are stored unrotated and turned to their cache positions each step."""

import pytest
import torch
from core_helpers import HEAD_DIM, Driver, rotary

from questbench import attention
from questbench.errors import CellError, UsageError
from questbench.methods.streaming_llm import StreamingLLM

SINKS, BUDGET = 4, 16


class Written:
    """One row of the original: raw keys, sinks and a window, positions inside the cache."""

    def __init__(self, kv_heads, group):
        self.group = group
        self.k = self.v = torch.zeros((kv_heads, 0, HEAD_DIM), dtype=torch.float64)

    def forward(self, q, k, v):
        self.k, self.v = torch.cat([self.k, k.double()], dim=1), torch.cat([self.v, v.double()], dim=1)
        total, new = self.k.shape[1], k.shape[1]
        keys = rotary(self.k, torch.arange(total)).repeat_interleave(self.group, dim=0)
        queries = rotary(q.double(), torch.arange(total - new, total))
        causal = torch.ones((new, total)).tril(total - new).bool()
        logits = (queries @ keys.transpose(1, 2) / HEAD_DIM**0.5).masked_fill(~causal, -torch.inf)
        out = torch.softmax(logits, dim=-1) @ self.v.repeat_interleave(self.group, dim=0)
        recent = BUDGET - 1 - SINKS
        if total > SINKS + recent:
            self.k = torch.cat([self.k[:, :SINKS], self.k[:, -recent:]], dim=1)
            self.v = torch.cat([self.v[:, :SINKS], self.v[:, -recent:]], dim=1)
        return out


@pytest.mark.parametrize("counts", [[40] + [1] * 30, [9] + [1] * 30, [40, 1, 1, 6, 1, 1, 1, 30, 1, 1]])
def test_cache_positions_equal_the_original(ops, counts):
    """Prompts, decode steps and later turns; the cache itself gets keys rotated at text positions, as models do."""
    driver, written, seen = Driver(StreamingLLM(BUDGET), ops, 1), Written(2, 2), 0
    for count in counts:
        q, k, v = driver.entries(count)
        text = torch.arange(seen, seen + count)
        seen += count
        turned_q, turned_k = rotary(q, text), rotary(k, text)
        driver.layer.append(turned_k, v)
        if count == 1:
            out = attention.decode(driver.layer, turned_q[:, :, 0].contiguous(), driver.scoring)[:, :, None]
        else:
            out = attention.prefill(driver.layer, turned_q, turned_k, v, driver.scoring)
            driver.layer.end_prefill()
        expected = written.forward(q[0], k[0], v[0]).float()
        torch.testing.assert_close(out[0], expected, rtol=1e-4, atol=1e-5)


def test_rows_shift_by_their_own_lengths(ops):
    lengths = [40, 9]
    together, alone = Driver(StreamingLLM(BUDGET), ops, 2), [Written(2, 2) for _ in lengths]
    q, k, v = together.entries(40)
    text = torch.stack([torch.arange(40) - (40 - length) for length in lengths])
    turned = [rotary(x, text[:, None]) for x in (q, k)]
    together.layer.append(turned[1], v, lengths)
    attention.prefill(together.layer, *turned, v, together.scoring, lengths)
    together.layer.end_prefill()
    for row, length in enumerate(lengths):
        alone[row].forward(q[row, :, -length:], k[row, :, -length:], v[row, :, -length:])
    for step in range(20):
        q, k, v = together.entries(1)
        place = torch.tensor(lengths)[:, None, None] + step
        together.layer.append(rotary(k, place), v)
        out = attention.decode(together.layer, rotary(q, place)[:, :, 0].contiguous(), together.scoring)
        for row, written in enumerate(alone):
            expected = written.forward(q[row], k[row], v[row]).float()
            torch.testing.assert_close(out[row], expected[:, 0], rtol=1e-4, atol=1e-5)


def test_text_positions_are_a_plain_mask(ops):
    driver = Driver(StreamingLLM(BUDGET, positions="text"), ops, 1, rotate=None)
    q, k, v = driver.entries(60)
    driver.layer.append(k[:, :, :50], v[:, :, :50])
    attention.prefill(driver.layer, q[:, :, :50], k[:, :, :50], v[:, :, :50], driver.scoring)
    driver.layer.end_prefill()
    for place in range(50, 60):
        part = slice(place, place + 1)
        driver.layer.append(k[:, :, part], v[:, :, part])
        out = attention.decode(driver.layer, q[:, :, place].contiguous(), driver.scoring)
        seen = [*range(SINKS), *range(place - (BUDGET - 1 - SINKS), place + 1)]
        keys, values = (x[0, :, seen].repeat_interleave(2, dim=0) for x in (k, v))
        p = torch.softmax((keys @ q[0, :, place, :, None])[..., 0] / HEAD_DIM**0.5, dim=-1)
        torch.testing.assert_close(out[0], (p[:, None] @ values)[:, 0], rtol=1e-4, atol=1e-5)


def test_without_a_rotary_embedding_cache_positions_are_refused(ops):
    driver = Driver(StreamingLLM(BUDGET), ops, 1, rotate=None)
    driver.prefill([30])
    with pytest.raises(CellError, match="rotary"):
        driver.step()


def test_a_budget_without_a_window_is_refused():
    with pytest.raises(UsageError, match="at least 6"):
        StreamingLLM(5).check(16)
