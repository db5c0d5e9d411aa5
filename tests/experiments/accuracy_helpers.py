"""What the accuracy tests share: a small random model that reads the constructed tokenizer's texts, and short runs."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from questbench.experiments import accuracy
from questbench.experiments.accuracy import AccuracyConfig
from questbench.models import loading
from questbench.models.loading import LoadedModel
from questbench.records.schema import ResultRecord


@functools.cache
def random_model() -> LoadedModel:
    """Three layers with grouped heads; attention matters, and nothing is known of any text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from questbench.models.constructed.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        initializer_range=0.25,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LoadedModel(LlamaForCausalLM(config).eval(), tokenizer, "random", dense_layers=1)


def use(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every run load ``model``."""
    monkeypatch.setattr(loading, "resolve", lambda *args, **kwargs: model)


def run(finished: Any = (), stored: Any = (), **settings: Any) -> tuple[list[ResultRecord], list[dict], list]:
    """Records, sample rows and units of a run."""
    config = AccuracyConfig(**{"threads": 1} | settings)
    accuracy.check(config)
    units = list(accuracy.run(config, finished=set(finished), stored=stored))
    return [r for unit in units for r in unit.records], [row for unit in units for row in unit.samples], units


def plain(row: dict) -> dict:
    """A row without what may differ between two runs of the same: times, and how many ran together."""
    return {name: value for name, value in row.items() if name not in ("seconds", "batch")}
