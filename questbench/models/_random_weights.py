"""Models of a well-known shape with random weights: right for speed, meaningless for accuracy."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from questbench.models._fits import check_memory
from questbench.models.shapes import Shape, named

SPREAD = 0.02
"""Standard deviation of the weights: small enough for stable activations at any depth."""
NOISE = 1_048_583
"""Random numbers drawn; they are repeated over all weights. A prime, so that no two rows of a matrix are equal."""


def build(name: str, dtype: torch.dtype, device: str, seed: int, layers: int | None = None) -> PreTrainedModel:
    """A model of the named shape, in evaluation mode.

    Raises:
        UsageError: unknown shape, or a number of layers that it does not have.
        PrerequisiteError: the weights do not fit into memory.
    """
    config = configuration(named(name, layers), layers)
    with torch.device("meta"):
        weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(config, dtype=dtype).parameters())
    check_memory(f"shape:{name}", weights * dtype.itemsize, device)
    with torch.device(device), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    _fill(model, seed)
    model.tie_weights()
    return model.eval()


def configuration(shape: Shape, layers: int | None = None) -> Any:
    """The transformers configuration of a shape."""
    settings: dict[str, Any] = {
        "num_hidden_layers": layers or shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ff,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if shape.architecture == "mistral":
        settings["sliding_window"] = None  # The class's default is that of the first release, not of this shape.
    return AutoConfig.for_model(shape.architecture, **settings)


@torch.no_grad()
def _fill(model: PreTrainedModel, seed: int) -> None:
    """Matrices get noise at the speed of memory, biases zero; norms keep what their classes set."""
    device = next(model.parameters()).device
    drawn = torch.randn(NOISE, generator=torch.Generator().manual_seed(seed)) * SPREAD
    noise: dict[torch.dtype, torch.Tensor] = {}
    start = 0
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            if name.endswith("bias"):
                parameter.zero_()
            continue
        source = noise.setdefault(parameter.dtype, drawn.to(device, parameter.dtype))
        flat = parameter.view(-1)
        done = 0
        while done < flat.numel():
            count = min(NOISE - start, flat.numel() - done)
            flat[done : done + count] = source[start : start + count]
            done, start = done + count, (start + count) % NOISE
