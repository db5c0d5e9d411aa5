"""A method that reads prompts for itself has a prefill of its own; the others share the dense one as before."""

from __future__ import annotations

import copy

import pytest
import torch
from accuracy_helpers import add_windowed, plain, random_model, run, use

from questbench.experiments import accuracy
from questbench.experiments.accuracy import AccuracyConfig, grid
from questbench.experiments.accuracy.session import Session, stop_ids
from questbench.kernels import load
from questbench.methods.dense import Dense
from questbench.models import hf

SETTINGS = {"tasks": ["passkey"], "seq_lens": [300], "samples": 2}


@pytest.fixture
def windowed(tmp_path, monkeypatch):
    use(random_model(), monkeypatch)
    return add_windowed(tmp_path, monkeypatch)


def rows_by_cell(rows):
    return {(row["sample"], row["cell"]): plain(row) for row in rows}


def test_every_cell_is_what_it_is_alone(windowed):
    records, rows, units = run(methods=["windowed", "quest", "h2o"], budgets=[48, 64], **SETTINGS)
    assert [unit.prefills for unit in units if unit.samples] == [3, 3]  # dense, and windowed at either budget
    assert [row["method"] for row in rows[:7]] == ["dense", "windowed", "windowed", "quest", "quest", "h2o", "h2o"]
    found = rows_by_cell(rows)
    for methods, budget in ((["windowed"], 48), (["windowed"], 64), (["quest", "h2o"], 48)):
        _, alone, units = run(methods=methods, budgets=[budget], **SETTINGS)
        assert [unit.prefills for unit in units if unit.samples] == [1 + (methods == ["windowed"])] * 2
        assert all(found[key] == row for key, row in rows_by_cell(alone).items())
    scores = {(r.method, r.method_args.get("budget")): r for r in records if r.metric == "score"}
    warnings = {name: " ".join(record.warnings) for (name, _), record in scores.items()}
    assert "reads each prompt for itself" in warnings["windowed"]
    assert not any("reads each prompt" in warnings[name] for name in ("dense", "quest", "h2o"))
    stats = scores["windowed", 48].stats
    assert not stats["dense_fallback"] and not stats["nothing_left_out"] and "p_value" in stats


@pytest.mark.parametrize("dense_layers", [0, 1])
def test_losses_are_those_of_plain_attention_in_float64(windowed, dense_layers):
    loaded = random_model()
    config = AccuracyConfig(tasks=["ppl"], methods=["windowed", "quest"], budgets=[48, 64], seq_lens=[600], threads=1)
    (work, chosen, _), *_ = grid(config)
    session = Session(config, loaded, load("cpu"), dense_layers, stop_ids(loaded), None, None)
    (done,) = session.samples(work, chosen, [0])
    prompt = session.prepare(work, 0).prompt
    ids, cut = torch.tensor([prompt.prefill + prompt.steps]), len(prompt.prefill)
    model = copy.deepcopy(loaded.model).double()
    model.set_attn_implementation("eager")
    for cell, row in zip(chosen, done.rows, strict=True):
        if cell.name not in ("dense", "windowed"):
            continue
        causal = torch.ones((ids.shape[1],) * 2, dtype=torch.bool).tril()
        sparse = causal.clone()
        if cell.name == "windowed":
            sparse[:cut, :cut] = windowed.seen(cut, cut, cell.method.budget // 2)
        masks = [torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -1e30) for mask in (causal, sparse)]
        handles = [
            layer.self_attn.register_forward_pre_hook(
                lambda _, args, kwargs, mask=masks[number >= dense_layers]: (
                    args,
                    kwargs | {"attention_mask": mask[None, None]},
                ),
                with_kwargs=True,
            )
            for number, layer in enumerate(model.model.layers)
        ]
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0, cut:-1]
        for handle in handles:
            handle.remove()
        losses = torch.nn.functional.cross_entropy(logits, ids[0, cut + 1 :], reduction="none")
        assert row["nll"] == pytest.approx(float(losses.sum()), rel=1e-5)
    losses = [row["nll"] for row in done.rows]
    assert len(set(losses)) == len(losses) == 5


def test_a_prompt_in_parts_is_read_alike(windowed):
    """As ``e2e`` feeds it, to a cache of the method itself rather than to a base for forks."""
    model, ids, method = random_model().model, torch.arange(300) % 97 + 3, windowed.Windowed(48)
    whole, parts = (hf.build_cache(model, method, dense_layers=1) for _ in range(2))
    expected = hf.forward(model, ids, whole)
    torch.testing.assert_close(hf.prefill(model, ids, parts, chunk=128), expected)
    dense = hf.forward(model, ids, hf.build_cache(model, Dense(), dense_layers=1))
    assert (expected - dense).abs().max() > 1e-3


def test_the_card_names_it(windowed):
    config = AccuracyConfig(methods=["windowed", "quest"], budgets=[48, 64], **SETTINGS)
    assert "dense, once per sample; windowed reads each prompt for itself; evicting" in accuracy.card(config)["prefill"]
