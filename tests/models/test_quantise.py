"""8- and 4-bit weights: refused with a reason where they cannot work; close to the full ones where they can."""

from __future__ import annotations

import sys

import pytest
import torch

from questbench.errors import PrerequisiteError, UsageError
from questbench.methods.dense import Dense
from questbench.models import hf, quantise, static_loop
from questbench.models.loading import resolve
from questbench.models.static_loop import StaticLoop


def model():
    return resolve("shape:smollm2-135m", dtype=torch.bfloat16, layers=2, need_tokenizer=False).model


def test_without_torchao_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(PrerequisiteError, match="torchao") as caught:
        quantise.check("int4", "cpu", "bf16")
    assert "questbench[quant]" in (caught.value.hint or "")
    quantise.check("full", "cpu", "fp32")


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="Unknown weights 'int3'"):
        quantise.check("int3", "cpu", "bf16")
    with pytest.raises(UsageError, match="bf16 only"):
        quantise.check("int8", "cpu", "fp32")


@pytest.mark.parametrize(("weights", "size", "error"), [("int8", 0.51, 0.05), ("int4", 0.35, 0.4)])
def test_quantised_weights_are_small_and_close(weights, size, error):
    pytest.importorskip("torchao")
    full, small = model(), model()
    ids = torch.arange(1, 33)[None]
    want = hf.prefill(full, ids, hf.build_cache(full, Dense())).float()
    about = quantise.quantise(small, weights)
    assert about["linears"] == 14 and about["weights"] == weights
    layers = [m.model.layers for m in (full, small)]
    before, after = (sum(map(quantise.weight_bytes, part)) for part in layers)
    assert after < size * before
    cache = hf.build_cache(small, Dense())
    got = hf.prefill(small, ids, cache).float()
    assert float((got - want).norm() / want.norm()) < error
    static_loop.forget(small)
    loop = StaticLoop(small, cache)
    assert loop.path == "flat"
    assert loop.linear_path == "mixed", "quantised layers beside a full output matrix"
    assert loop.feed([5]).isfinite().all()


def test_a_tied_output_matrix_cannot_be_quantised():
    pytest.importorskip("torchao")
    with pytest.raises(UsageError, match="embedding"):
        quantise.quantise(model(), "int8", head=True)
