"""The matrices of the constructed model: a stock ``LlamaForCausalLM`` of two layers, every weight set by a rule.

The residual stream, 384 channels:

    const 1 | begin 1 | code 34 | before_1 34 | ... | before_4 34 | identity 104 | out 104 | unused 4

``const`` is 64 for every token: it drowns the rest in RMSNorm's mean square, so that the norm divides every token by
the same number and matrices see the channels as they were written. ``begin`` marks BOS. The MLPs are zero.

**Layer 0: what stands before me.** Query head o = 1..4 copies the match code of the token o places back. Keys are the
same vector everywhere and queries are that vector turned back by o places, both read from ``const``, so after the
rotary embedding (angles w_i, i < 12, of the 64 pairs; the others do not turn) the logit depends on the distance alone:

    logit(t, s) = a / 12 * sum_i cos((t - o - s) w_i)            = a at s = t - o

The best other distance up to 131,072 reaches 0.81 a. With a = 160 it loses by 30, a factor of 1e13.

**Layer 1: where have I seen this before.** A key describes what stood before its token, a query what stands at its own
place and before, one place shifted, each in three slots of 34 channels that do not turn:

    KV head 0 (near)   query: code, before_1, before_2            key: before_1, before_2, before_3
    KV head 1 (far)    query: before_1, before_2, before_3        key: before_2, before_3, before_4

    logit(t, s) = 30 * sum over slots of code . code' / 3         30 per slot of strong tokens that agree

Key s fits exactly if the tokens before s are the newest tokens at t: then the token at s is what followed last time.
It is copied through its identity and the unembedding. A strong token has 2.5 more as a key, so that of places that fit
alike the one where a fact stands wins over the one where a sentence ends. Each KV head serves two query heads: the
strict one asks for all three slots, the loose one skips the first and speaks a quarter as loud, a back-off to shorter
n-grams. The near and the far head see four tokens together; their votes add.

**Nothing matches.** BOS has a key of its own whose logit for every query is 48: more than one full slot, less than two.
Whoever finds nothing better looks there; a token of the haystack has 18 at most. Its value votes for EOS.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from questbench.errors import PrerequisiteError
from questbench.models.constructed.codes import CODE, DIGITS, IDENTITY, ONES, identity, match_code

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.models.llama.modeling_llama import LlamaAttention

HIDDEN, HEAD_DIM, QUERY_HEADS, KV_HEADS = 384, 128, 4, 2
PAIRS = 12
"""Pairs of channels that the rotary embedding turns."""
ROPE = {"rope_type": "proportional", "rope_theta": 1e3, "partial_rotary_factor": 2 * PAIRS / HEAD_DIM}

PIN = 64.0
"""Value of ``const``."""
PLACE_LOGIT = 160.0
"""Layer 0: logit of the right place."""
SLOT_LOGIT = 30.0
"""Layer 1: logit of one slot of strong tokens that agree."""
SINK_LOGIT = 1.6 * SLOT_LOGIT
"""Layer 1: logit of BOS."""
FACT_LOGIT = 2.5
"""Layer 1: what a strong token has more than a weak one, as a key."""
GAINS = (1.0, 0.25, 0.6, 0.15)
"""How loud the heads copy: near strict, near loose, far strict, far loose. A near head may overrule both far ones."""
SINK_GAINS = (0.4, 0.0, 0.24, 0.0)
"""How loud they say "nothing found": both strict ones together drown the loose ones, one does not drown the other."""
VOTE_LOGIT = 80.0
"""Logit of a token that the strict near head copies."""

CONST, BEGIN = 0, 1
OWN = slice(2, 2 + CODE)
BEFORE = [slice(OWN.stop + place * CODE, OWN.stop + (place + 1) * CODE) for place in range(4)]
SELF = slice(BEFORE[-1].stop, BEFORE[-1].stop + IDENTITY)
OUT = slice(SELF.stop, SELF.stop + IDENTITY)

STILL = [*range(PAIRS, HEAD_DIM // 2), *range(HEAD_DIM // 2 + PAIRS, HEAD_DIM)]
"""Channels of a head that the rotary embedding leaves alone."""
SLOTS = [STILL[slot * CODE : (slot + 1) * CODE] for slot in range(3)]
SINK, FACT = STILL[3 * CODE : 3 * CODE + 2]
"""Channels of a head that mark BOS and strong tokens in the key."""


def build_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """A stock Llama configuration."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=QUERY_HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=131072,
        rms_norm_eps=1e-6,
        rope_parameters=dict(ROPE),
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["LlamaForCausalLM"],
    )
    config._name_or_path = "constructed"
    return config


def build_model(tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype) -> LlamaForCausalLM:
    """The model over ``tokenizer``'s vocabulary."""
    from transformers import LlamaForCausalLM
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if ROPE["rope_type"] not in ROPE_INIT_FUNCTIONS:
        raise PrerequisiteError(
            "The constructed model needs proportional rotary embeddings, which this transformers does not have.",
            "Install transformers 5.17 or newer.",
        )
    config = build_config(tokenizer)
    config.dtype = dtype
    with torch.random.fork_rng(devices=[]):  # transformers fills the weights at random before they are set here
        model = LlamaForCausalLM(config)
    turning = model.model.rotary_emb.inv_freq
    assert turning[:PAIRS].all() and not turning[PAIRS:].any(), "the first pairs turn, the others stand still"
    codes, identities = _token_tables(tokenizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        _set_embedding(model.model.embed_tokens.weight, codes, identities, tokenizer.bos_token_id)
        _set_position_layer(model.model.layers[0].self_attn, turning)
        _set_retrieval_layer(model.model.layers[1].self_attn, identities[tokenizer.eos_token_id])
        model.lm_head.weight[:, OUT] = identities * (VOTE_LOGIT / IDENTITY / _gain())
        for parameter in model.parameters():
            # Not model.to(dtype): that would round the rotary frequencies too.
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(False)
    model.generation_config.do_sample = False
    return model.eval()


def _gain() -> float:
    """What RMSNorm multiplies every channel by; codes, at most 15 of 4,215, are left out."""
    return math.sqrt(HIDDEN / (PIN**2 + IDENTITY))


def _token_tables(tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Match codes ``[V, CODE]`` and identities ``[V, IDENTITY]`` of all tokens; special tokens match nothing."""
    special = set(tokenizer.all_special_ids)
    codes, identities = [], []
    for index, symbol in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        text = tokenizer.convert_tokens_to_string([symbol])
        codes.append([0.0] * CODE if index in special else match_code(text))
        identities.append(identity(symbol))
    return torch.tensor(codes), torch.tensor(identities)


def _set_embedding(weight: Tensor, codes: Tensor, identities: Tensor, bos: int) -> None:
    weight[:, CONST] = PIN
    weight[:, OWN] = codes
    weight[:, SELF] = identities
    # BOS has no identity, so that nobody copies it; its mark is as long as an identity, so that norms stay equal.
    weight[bos, SELF] = 0.0
    weight[bos, BEGIN] = math.sqrt(IDENTITY)


def _wire(weight: Tensor, rows: slice | list[int], columns: slice | list[int], value: float) -> None:
    """Set the block ``weight[rows, columns]`` to ``value`` times the identity matrix."""
    places = torch.arange(weight.shape[1])
    for row, column in zip(torch.arange(weight.shape[0])[rows], places[columns], strict=True):
        weight[row, column] = value


def _by_head(attention: LlamaAttention) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of the matrices: queries ``[Hq, D, d]``, keys and values ``[Hk, D, d]``, outputs ``[d, Hq, D]``."""
    return (
        attention.q_proj.weight.view(QUERY_HEADS, HEAD_DIM, HIDDEN),
        attention.k_proj.weight.view(KV_HEADS, HEAD_DIM, HIDDEN),
        attention.v_proj.weight.view(KV_HEADS, HEAD_DIM, HIDDEN),
        attention.o_proj.weight.view(HIDDEN, QUERY_HEADS, HEAD_DIM),
    )


def _set_position_layer(attention: LlamaAttention, turning: Tensor) -> None:
    """Layer 0: head h attends to the token h + 1 places back and writes its code to ``before_{h + 1}``."""
    gain, half = _gain(), HEAD_DIM // 2
    # A pair that points the same way in query and key adds size**2 / sqrt(D) to the logit.
    size = math.sqrt(PLACE_LOGIT / PAIRS * math.sqrt(HEAD_DIM))
    queries, keys, values, outputs = _by_head(attention)
    keys[:, :PAIRS, CONST] = size / (PIN * gain)
    for head in range(QUERY_HEADS):
        angle = (head + 1) * turning[:PAIRS]
        queries[head, :PAIRS, CONST] = size / (PIN * gain) * angle.cos()
        queries[head, half : half + PAIRS, CONST] = size / (PIN * gain) * -angle.sin()
        _wire(outputs[:, head], BEFORE[head], slice(CODE), 1.0)
    for head in range(KV_HEADS):
        _wire(values[head], slice(CODE), OWN, 1.0 / gain)


def _set_retrieval_layer(attention: LlamaAttention, nothing: Tensor) -> None:
    """Layer 1: near and far n-gram match, in a strict and a loose version each; ``nothing`` is EOS's identity."""
    gain = _gain()
    # Strong tokens that agree have ONES channels in common, each adding size**2 / sqrt(D) to the logit.
    size = math.sqrt(SLOT_LOGIT / ONES * math.sqrt(HEAD_DIM))
    sink = math.sqrt(SINK_LOGIT * math.sqrt(HEAD_DIM))
    fact = math.sqrt(FACT_LOGIT * math.sqrt(HEAD_DIM))
    first_digit = slice(OWN.start, OWN.start + DIGITS[0])  # every strong token has exactly one
    queries, keys, values, outputs = _by_head(attention)
    trail = [OWN, *BEFORE]
    for head in range(KV_HEADS):
        for slot, channels in enumerate(SLOTS):
            _wire(keys[head], channels, trail[head + slot + 1], size / gain)
        keys[head, SINK, BEGIN] = sink / (math.sqrt(IDENTITY) * gain)
        keys[head, FACT, first_digit] = fact / gain
        _wire(values[head], slice(IDENTITY), SELF, 1.0 / gain)
        values[head, IDENTITY, BEGIN] = 1.0 / (math.sqrt(IDENTITY) * gain)
    for head in range(QUERY_HEADS):
        far, loose = divmod(head, QUERY_HEADS // KV_HEADS)
        for slot in range(loose, len(SLOTS)):
            _wire(queries[head], SLOTS[slot], trail[far + slot], size / gain)
        queries[head, FACT, CONST] = fact / (PIN * gain)
        queries[head, SINK, CONST] = sink / (PIN * gain)
        _wire(outputs[:, head], OUT, slice(IDENTITY), GAINS[head])
        outputs[OUT, head, IDENTITY] = SINK_GAINS[head] * nothing
