"""What the accuracy tests share: a small random model that reads the constructed tokenizer's texts, and short runs."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
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


WINDOWED = '''
"""A method whose prompts are read through a window, and that reads everything in a step."""
import sys
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from questbench.methods._base import Everything, Method

def seen(count, entries, window):
    """``[count, entries]``: what the newest queries of a prompt see."""
    query, key = torch.arange(entries - count, entries)[:, None], torch.arange(entries)
    return (key <= query) & ((key < 4) | (key > query - window))

@dataclass(frozen=True)
class Windowed(Method):
    @property
    def warmup_steps(self):
        return sys.maxsize

    def read_prompt(self, q, k, v, layer, scoring):
        mask = seen(q.shape[1], k.shape[1], self.budget // 2)
        return scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, scale=scoring.scale, enable_gqa=True
        )[0]

    def select(self, q, layer, ops):
        return Everything()

    def tokens_visible(self, length, page_size):
        return length

    def bytes_read(self, length, shape):
        return shape.entry_bytes * length
'''


def add_windowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Add the method ``windowed``; its module."""
    (folder / "windowed.py").write_text(WINDOWED)
    methods = importlib.import_module("questbench.methods")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "questbench.methods.windowed", raising=False)
    return importlib.import_module("questbench.methods.windowed")


def plain(row: dict) -> dict:
    """A row without what may differ between two runs of the same: times, and how many ran together."""
    return {name: value for name, value in row.items() if name not in ("seconds", "batch")}
