"""Where training starts: random weights with the skeleton of an induction circuit in embeddings and attention.

From random weights two slow cores spend most of an hour on a plateau until heads that look back a few tokens have
grown, and heads that match what those have written. Here layer 0 starts with the former (a fixed number of tokens is
looked back exactly, because rotary scores peak at an offset), and the last layer with random but shared projections for
the match and for the copy. What the tasks need beyond it (when to look up and when to end, other wordings, hops, null
keys, long texts) is trained, and all weights are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from questbench.models.constructed.vocabulary import CUE_MARKS, CUES

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

CONSTANT = 0.25
"""Channel 0 of every embedding, which the look-back heads' constant queries and keys are made of."""
PEAK = 6.0
"""Score per turning channel pair at the offset that is looked for."""
FAR = 5
"""From the second half of a value, or the first third of a name, back to the name that it is assigned to."""
TOKEN = 0.08
"""Standard deviation of an embedding's channels, and of what a look-back head writes."""
MATCH = 30.0
"""Score of a key whose two tokens both match the query's, about, before training."""

CLASSES, CLASS = 4, 0.4
"""Channels that tell kinds of tokens apart, and their share of a code's length."""
SINK = 9.0
"""Score of BOS for every query, a little less than that of one token that matches."""
SURE = 4.0
"""Factor on the final norm: an answer that is copied starts with a margin."""


@torch.no_grad()
def skeleton(model: LlamaForCausalLM, tokenizer: Any) -> None:
    """Set the embeddings and the attention matrices of a model of four heads and two KV heads.

    Channels ``[own | one | two | three | far]`` of the residual stream begin as a token's random code, and as what the
    heads of layer 0 copy of it from 1, 2, 3 and ``FAR`` tokens before. In the last layer, head 0 copies what followed
    where the same three tokens stood. Head 2 goes back instead: where a token stood that is wanted now, it copies what
    stood ``FAR`` tokens before it, which is how an assignment is read backwards.
    """
    size, hidden = model.config.head_dim, model.config.hidden_size
    layers = model.model.layers
    width = min((hidden - 1) // 5, size)
    own, one, two, three, far = (slice(1 + at * width, 1 + (at + 1) * width) for at in range(5))
    table = model.model.embed_tokens.weight
    nn.init.normal_(table, std=0.005)
    table[:, own] = codes(tokenizer, width)
    # Rows of one length: the norm before layer 0 would else turn longer ones into weaker look-back keys.
    table[:, 1:] *= TOKEN * math.sqrt(width) / table[:, 1:].norm(dim=1, keepdim=True)
    table[:, 0] = CONSTANT
    model.model.norm.weight *= SURE
    for layer in layers:
        layer.self_attn.o_proj.weight *= 0.05
        layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0.0  # nothing disturbs the constant
    first, last = layers[0].self_attn, layers[-1].self_attn
    # What the norms divide by, before and after the slots are filled.
    scales = [math.sqrt(hidden / (CONSTANT**2 + slots * width * TOKEN**2)) for slots in (1, 5)]
    turning = model.model.rotary_emb.inv_freq
    turning = turning[turning > 0]
    _look_back(first, (1, 2, 3, FAR), turning, math.sqrt(PEAK * math.sqrt(size)) / (CONSTANT * scales[0]))
    code = torch.linalg.qr(torch.randn(width, width)).Q
    moves = [(first, head, own, place, 1 / scales[0]) for head, place in enumerate((one, two, three, far))]
    moves += [(last, 0, own, own, 4 / scales[1]), (last, 2, far, own, 4 / scales[1])]
    for attention, head, source, target, gain in moves:
        start = head // 2 * size  # two heads share keys and values
        attention.v_proj.weight[start : start + width, :] = 0.0
        attention.v_proj.weight[start : start + width, source] = code
        attention.o_proj.weight[target, head * size : head * size + width] += gain * code.T
    # Head -> pairs of slots (of the key, of the query) that must agree, and how many of them do in a match.
    still = torch.tensor([i for i in range(size) if i % (size // 2) >= len(turning)])[:, None]
    sink = table[model.config.bos_token_id, own] * scales[1]
    for head, (pairs, agree) in {
        0: (((one, own), (two, one), (three, two)), 3),
        2: (((own, two), (one, far)), 1),
    }.items():
        keys, queries = still + head // 2 * size, still + head * size
        resting = torch.zeros(len(still))
        for key, query in pairs:
            # Only what is looked up by is read, so the keys of all other words begin as zeros.
            mix = torch.randn(len(still), width) / math.sqrt(len(still))
            mix[:, :CLASSES] = mix[:, width - plain_dims(width) :] = 0.0
            mix *= math.sqrt(MATCH * math.sqrt(size) / agree / width) / (TOKEN * scales[1])
            last.k_proj.weight[keys, torch.arange(key.start, key.stop)] += mix
            last.q_proj.weight[queries, torch.arange(query.start, query.stop)] += mix
            resting += mix @ sink  # before BOS stands nothing, so all of its slots hold itself
        # A query that finds nothing rests on BOS, rather than copying noise.
        pull = SINK * math.sqrt(size) / float(resting.square().sum()) / (CONSTANT * scales[1])
        last.q_proj.weight[queries[:, 0], 0] += pull * resting


def plain_dims(width: int) -> int:
    """Channels of a code that tell plain words apart."""
    return width // 4


def codes(tokenizer: Any, width: int) -> torch.Tensor:
    """A random code ``[vocabulary, width]`` per token: ``[class | what is looked up by | plain words]``.

    Numbers, capitals, the words and marks that announce a fact and BOS have the middle part, all other tokens the last.
    """
    table = torch.randn(len(tokenizer), width)
    middle, last = slice(CLASSES, width - plain_dims(width)), slice(width - plain_dims(width), width)
    cues = {*CUES, *CUE_MARKS, "is", "stop", "VAR", tokenizer.bos_token}
    for token, row in enumerate(table):
        text = tokenizer.decode([token])
        bare = text.strip()
        spaced = text.startswith(" ")
        kinds = [bare.isdigit() and spaced, bare.isdigit(), bare.isupper() and bare != "VAR", bare in cues]
        row[:CLASSES] = 0.0
        row[last if any(kinds) else middle] = 0.0
        row /= row.norm()
        if any(kinds):
            row *= math.sqrt(1 - CLASS**2)
            row[kinds.index(True)] = CLASS
    return table * TOKEN * math.sqrt(width)


def _look_back(attention: nn.Module, offsets: tuple[int, ...], turning: torch.Tensor, strength: float) -> None:
    """Heads whose keys are one constant in every turning pair, and whose queries are that constant turned back."""
    size = attention.head_dim
    pairs = torch.arange(len(turning))
    for start in range(0, len(attention.k_proj.weight), size):
        attention.k_proj.weight[start + pairs] = attention.k_proj.weight[start + size // 2 + pairs] = 0.0
        attention.k_proj.weight[start + pairs, 0] = strength
    for head, offset in enumerate(offsets):
        attention.q_proj.weight[head * size + pairs, 0] = strength * torch.cos(turning * offset)
        attention.q_proj.weight[head * size + size // 2 + pairs, 0] = -strength * torch.sin(turning * offset)
