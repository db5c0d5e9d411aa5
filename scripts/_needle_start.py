"""Where training starts: random weights with the skeleton of an induction circuit in the attention matrices.

From random weights two slow cores spend most of an hour on a plateau until heads that look back one and two tokens have
grown, and heads that match what those have written. Here layer 0 starts with the former (two tokens are looked back
exactly, because rotary scores peak at an offset), layer 1 with a weaker one, and the last layer with random but shared
projections for the match and for the copy. What the tasks need beyond it (which tokens to match, groups of three, other
wordings, hops, null keys, long texts) is trained, and all weights are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

CONSTANT = 0.25
"""Channel 0 of every embedding, which the look-back heads' constant queries and keys are made of."""
PEAK = 5.0
"""Score per turning channel pair at the offset that is looked for."""
TOKEN = 0.08
"""Standard deviation of an embedding's channels, and of what a look-back head writes."""
MATCH = 10.0
"""Score of a key whose two tokens both match the query's, about, before training."""

SURE = 4.0
"""Factor on the final norm: an answer that is copied starts with a margin."""


@torch.no_grad()
def skeleton(model: LlamaForCausalLM) -> None:
    """Set the embeddings and the attention matrices of a model of three or more layers.

    Channels ``[own | before | before that]`` of the residual stream begin as a token's random code, and as what the
    two look-back heads of layer 0 copy of it.
    """
    size, hidden = model.config.head_dim, model.config.hidden_size
    third = (hidden - 1) // 3
    own, one, two = (slice(1 + at * third, 1 + (at + 1) * third) for at in range(3))
    table = model.model.embed_tokens.weight
    nn.init.normal_(table, std=0.005)
    nn.init.normal_(table[:, own], std=TOKEN)
    # Rows of one length: the norm before layer 0 would else turn longer ones into weaker look-back keys.
    table[:, 1:] *= TOKEN * math.sqrt(third) / table[:, 1:].norm(dim=1, keepdim=True)
    table[:, 0] = CONSTANT
    scale = 1 / float(table.square().mean().sqrt())
    layers = model.model.layers
    model.model.norm.weight *= SURE
    turning = model.model.rotary_emb.inv_freq
    turning = turning[turning > 0]
    for layer, offsets in ((layers[0], (1, 2)), (layers[1], (1,))):
        _look_back(layer.self_attn, offsets, turning, math.sqrt(PEAK * math.sqrt(size)) / (CONSTANT * scale))
    for layer in layers:
        layer.self_attn.o_proj.weight *= 0.2
    first, last = layers[0].self_attn, layers[-1].self_attn
    width = min(third, size)
    code = torch.linalg.qr(torch.randn(third, width)).Q.T  # [width, third]
    for attention, places in ((first, (one, two)), (last, (own,))):
        attention.v_proj.weight[:width, own] += code
        for head, place in enumerate(places):
            gain = 1 / scale if attention is first else 6 / scale
            attention.o_proj.weight[place, head * size : head * size + width] += gain * code.T
    # A key holds what stood one and two tokens before it; a query what stands here and one token before.
    still = [i for i in range(size) if i % (size // 2) >= len(turning)]
    mixed = [torch.randn(len(still), third) / math.sqrt(len(still)) for _ in range(2)]
    strength = math.sqrt(MATCH * math.sqrt(size) / 2 / third) / (TOKEN * scale / 2)  # the stream has grown by then
    for matrix, places in ((last.k_proj.weight, (one, two)), (last.q_proj.weight, (own, one))):
        for place, mix in zip(places, mixed, strict=True):
            matrix[torch.tensor(still)[:, None], torch.arange(place.start, place.stop)] += strength * mix


def _look_back(attention: nn.Module, offsets: tuple[int, ...], turning: torch.Tensor, strength: float) -> None:
    """Heads whose keys are one constant in every turning pair, and whose queries are that constant turned back."""
    size = attention.head_dim
    pairs = torch.arange(len(turning))
    for start in range(0, len(attention.k_proj.weight), size):
        attention.k_proj.weight[start + pairs, 0] = strength
    for head, offset in enumerate(offsets):
        attention.q_proj.weight[head * size + pairs, 0] = strength * torch.cos(turning * offset)
        attention.q_proj.weight[head * size + size // 2 + pairs, 0] = -strength * torch.sin(turning * offset)
