"""Tiny random models of many architectures, made from configurations; nothing is downloaded."""

from __future__ import annotations

import functools
from typing import Any

import torch
from core_helpers import HEAD_DIM
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 97
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 4 * HEAD_DIM,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
WIDE = {"head_dim": HEAD_DIM}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", WIDE | {"sliding_window": None}),
    "mistral-sliding": ("mistral", WIDE | {"sliding_window": 8}),
    "qwen3": ("qwen3", WIDE),
    "gemma2": ("gemma2", WIDE | {"sliding_window": 8, "query_pre_attn_scalar": 64, "attn_logit_softcapping": 5.0}),
    "phi3": ("phi3", {"partial_rotary_factor": 0.5}),
    "gpt_oss": ("gpt_oss", WIDE | {"sliding_window": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}),
}
HYBRID = ("gemma2", "gpt_oss")
"""Every second layer slides; the others are full."""


@functools.cache
def tiny(name: str) -> PreTrainedModel:
    """A model in evaluation mode; the same object on every call, so set its attention before use."""
    kind, extra = CONFIGS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(BASE | extra)), attn_implementation="eager")
    for parameter in model.parameters():
        if parameter.dim() == 1 and parameter.numel() == 4:
            parameter.data.normal_()  # Attention sinks start at zero or uninitialised.
    return model.eval()


def prompts(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids with left padding ``[B, longest]``, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(2, VOCABULARY, (len(lengths), longest), generator=generator)
    mask = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    return ids * mask, mask.long()
