"""Causal attention without masks is causal attention under masks: with a window, behind earlier entries, in parts."""

from __future__ import annotations

import pytest
import torch

from questbench.attention import Scoring, causal, flash
from questbench.models import hf_attention

SHAPES = [(4, 4), (4, 2), (6, 1)]
"""Query heads, KV heads."""
LENGTHS = [(1, 1), (1, 300), (5, 5), (130, 130), (70, 300), (128, 129), (200, 903)]
"""Queries, entries."""
LIMIT = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def made(heads, kv_heads, count, entries, dtype=torch.float32, width=16):
    generator = torch.Generator().manual_seed(count + entries)
    sizes = ((count, heads), (entries, kv_heads), (entries, kv_heads))
    # As a model brings them: heads are turned to the front, and rows of one head lie apart.
    return [torch.randn((*size, width), generator=generator).to(dtype).transpose(0, 1) for size in sizes]


def seen_by(count, entries, window=None):
    own = torch.arange(entries - count, entries)[:, None]
    place = torch.arange(entries)
    return (place <= own) & (place > own - (window or entries + 1))


def probabilities(q, k, seen, scale):
    """``[Hq, m, n]`` in float64, and the logits' log-sum-exp."""
    wide = k.double().repeat_interleave(q.shape[0] // k.shape[0], 0)
    logits = (q.double() @ wide.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
    return logits.softmax(-1), logits.logsumexp(-1)


def want(q, k, v, seen, scale):
    return probabilities(q, k, seen, scale)[0] @ v.double().repeat_interleave(q.shape[0] // v.shape[0], 0)


def close(got, expected, dtype):
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=LIMIT[dtype] * float(expected.abs().max()))


@pytest.mark.parametrize(("heads", "kv_heads"), SHAPES)
@pytest.mark.parametrize(("count", "entries"), LENGTHS)
def test_output_mass_and_log_sum_exp(heads, kv_heads, count, entries):
    q, k, v = made(heads, kv_heads, count, entries)
    out, lse = flash.causal(q, k, v, 0.3)
    expected, norm = probabilities(q, k, seen_by(count, entries), 0.3)
    assert out.shape == q.shape and out.dtype == q.dtype and lse.shape == q.shape[:2]
    close(out, want(q, k, v, seen_by(count, entries), 0.3), q.dtype)
    close(lse, norm, q.dtype)
    sums = flash.column_sums(q, k, lse, 0.3)
    torch.testing.assert_close(sums.double(), expected.unflatten(0, (kv_heads, -1)).sum((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_type(dtype):
    q, k, v = made(4, 2, 70, 300, dtype)
    out, lse = flash.causal(q, k, v, 0.3)
    close(out, want(q, k, v, seen_by(70, 300), 0.3), dtype)
    close(flash.windowed(q, k, v, 50, 0.3), want(q, k, v, seen_by(70, 300, 50), 0.3), dtype)
    sums = flash.column_sums(q, k, lse, 0.3)
    assert torch.allclose(sums.sum(-1), torch.tensor(140.0), rtol=1e-3)  # two query heads per KV head, 70 queries each


@pytest.mark.parametrize(("heads", "kv_heads"), SHAPES)
@pytest.mark.parametrize(("count", "entries"), [*LENGTHS, (200, 200), (64, 113), (65, 64 + 49)])
@pytest.mark.parametrize("window", [1, 2, 50, 64, 1000])
def test_windows(heads, kv_heads, count, entries, window):
    q, k, v = made(heads, kv_heads, count, entries)
    close(flash.windowed(q, k, v, window, 0.3), want(q, k, v, seen_by(count, entries, window), 0.3), q.dtype)


def test_a_window_reads_its_own_entries_only(monkeypatch):
    q, k, v = made(4, 1, 256, 767)
    read, kernel = [], flash._kernel

    def noted(queries, keys, *args, **options):
        read.append(queries.shape[0] * queries.shape[2] * keys.shape[2])
        return kernel(queries, keys, *args, **options)

    monkeypatch.setattr(flash, "_kernel", noted)
    flash.windowed(q, k, v, 512, 0.3)
    assert sum(read) == 4 * 256 * (512 + flash.BLOCK - 1)


def test_logits_that_overflow_a_hidden_column_do_no_harm():
    q, k, v = made(2, 1, 40, 40)
    k[:, 30:] *= 1e4  # exp of a later logit less an earlier row's log-sum-exp is infinite
    _, lse = flash.causal(q, k, v, 1.0)
    sums = flash.column_sums(q, k, lse, 1.0)
    assert sums.isfinite().all() and torch.allclose(sums.sum(), torch.tensor(80.0), rtol=1e-4)


PADDINGS = {"none": None, "left": [3, 0, 120, 9], "holes": "holes"}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("count", "columns"), [(1, 130), (130, 130), (61, 190)])
def test_rows_of_a_batch(padding, window, count, columns, monkeypatch):
    """What a model's sliding-window layers call gives what it gives under masks; on padding it is a number."""
    rows = [made(4, 2, count, columns) for _ in range(4)]
    q, k, v = (torch.stack([row[part] * (1 + number) for number, row in enumerate(rows)]) for part in range(3))
    mask = torch.ones((4, columns), dtype=torch.bool)
    if padding == "left":
        for row, first in enumerate(PADDINGS[padding]):
            mask[row, :first] = False
    elif padding == "holes":
        mask[:, 20:30] = False
    given = None if padding == "none" else mask
    scoring = Scoring(0.3)
    masked = hf_attention._masked(q, k, v, given, window, scoring)
    calls = []
    plain = hf_attention._masked
    monkeypatch.setattr(hf_attention, "_masked", lambda *args: calls.append(1) or plain(*args))
    got = hf_attention.dense(q, k, v, given, window, scoring)
    valid = mask[:, None, -count:, None].expand_as(got)
    torch.testing.assert_close(got[valid], masked[valid], rtol=1e-5, atol=1e-5)
    assert got.isfinite().all()
    assert bool(calls) == (padding == "holes" and count > 1), "left padding needs no mask"


def test_what_the_kernel_does_not_take_is_left_to_torch(monkeypatch):
    q, k, v = made(4, 2, 5, 9)
    assert flash.usable(q, k, v)
    assert not flash.usable(q, k, v.double()) and not flash.usable(q, k, v[..., :8])
    assert not flash.usable(q.transpose(1, 2).contiguous().transpose(1, 2), k, v)
    assert not flash.usable(q.to("meta"), k.to("meta"), v.to("meta"))
    monkeypatch.setattr(flash, "usable", lambda *_: False)
    out, lse = causal.plain(q, k, v, 0.3)
    assert lse is None
    close(out, want(q, k, v, seen_by(5, 9), 0.3), q.dtype)
