"""What one decode step of a Llama-like decoder does, laid out flat, so that no module's Python runs in between.

Nothing is copied from the modeling files: the plan takes a model's own matrices, norms, activation and rotary embedding
by the names that decoders of transformers share, replaces a norm or a rotation by torch's fused form only where it
gives the same numbers, and is compared with the model as a whole before it is used (``static_loop.py``).
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from questbench.attention import Scoring
from questbench.methods._base import CacheShape
from questbench.models._projection import Buffers, Projection
from questbench.models._rotation import by_halves, signed
from questbench.models._shape import cache_shape

Apply = Callable[[Tensor], Tensor]
Turn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``turn(x [B, H, D], cos [B, 1, d], sin [B, 1, d])``."""


class UnknownPart(Exception):
    """This model has a part that the plan has no word for; the message names it."""


class Norm:
    """An RMS norm by torch's fused form.

    Args:
        scale: fp32 ``[n]``; what the normalised values are multiplied by.
        epsilon: added to their mean square.
        dtype: of the model's weights.
    """

    def __init__(self, scale: Tensor, epsilon: float, dtype: torch.dtype) -> None:
        self.scale, self.epsilon = scale.contiguous(), epsilon
        narrow = self.scale.to(dtype)
        # One plus a weight of 16 bits has more digits than that, and the modules do not drop them.
        self._narrow = narrow if torch.equal(narrow.float(), self.scale) else None

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., n]`` -> the same shape and type."""
        if self._narrow is not None:
            return F.rms_norm(x, self.scale.shape, self._narrow, self.epsilon)
        return F.rms_norm(x.float(), self.scale.shape, self.scale, self.epsilon).to(x.dtype)


@dataclass(frozen=True)
class Block:
    """One decoder layer."""

    norm: Apply
    qkv: Projection
    q_norm: Apply | None
    k_norm: Apply | None
    turn: Turn
    out: Projection
    out_norm: Apply | None
    mlp_norm: Apply
    gate_up: Projection
    activation: Apply
    down: Projection
    down_norm: Apply | None
    heads: int
    kv_heads: int
    head_dim: int
    scoring: Scoring
    window: int | None
    kind: str | None
    """Layer type, where rotary embeddings differ by it."""

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Its linear layers."""
        return self.qkv, self.out, self.gate_up, self.down


@dataclass(frozen=True)
class Plan:
    """A decoder from token to logits."""

    embed: nn.Module
    rotary: Callable[[Tensor, Tensor], dict[str | None, tuple[Tensor, Tensor]]]
    blocks: tuple[Block, ...]
    norm: Apply
    head: Projection
    softcap: float

    @property
    def projections(self) -> list[Projection]:
        """All linear layers."""
        return [p for block in self.blocks for p in block.projections] + [self.head]


def lay_out(model: PreTrainedModel, rows: int) -> Plan:
    """The plan of a model for batches of ``rows``.

    Raises:
        UnknownPart: the model is no decoder of the kind that has one.
    """
    decoder = model.get_decoder()
    config = model.config.get_text_config(decoder=True)
    head = model.get_output_embeddings()
    for name, part in (("an output matrix", head), ("rotary embeddings", getattr(decoder, "rotary_emb", None))):
        if part is None:
            raise UnknownPart(f"{type(model).__name__} has no {name}")
    parameter = decoder.norm.weight
    buffers = Buffers(rows, parameter.dtype) if parameter.device.type == "cpu" else None
    kinds = getattr(config, "layer_types", None) or [None] * len(decoder.layers)
    kinds = kinds if "layer_type" in inspect.signature(decoder.rotary_emb.forward).parameters else [None] * len(kinds)
    blocks = tuple(
        _block(layer, kind, cache_shape(model, 1, index), buffers)
        for index, (layer, kind) in enumerate(zip(decoder.layers, kinds, strict=True))
    )
    return Plan(
        embed=decoder.embed_tokens,
        rotary=_rotary(decoder.rotary_emb, sorted(set(kinds), key=str)),
        blocks=blocks,
        norm=_norm(decoder.norm),
        head=Projection([head], buffers),
        softcap=float(getattr(config, "final_logit_softcapping", None) or 0.0),
    )


def _block(layer: nn.Module, kind: str | None, shape: CacheShape, buffers: Buffers | None) -> Block:
    attention: Any = _part(layer, "self_attn")
    mlp = _part(layer, "mlp")
    if getattr(attention, "sinks", None) is not None:
        raise UnknownPart("attention sinks")
    # Gemma has norms behind attention and MLP as well, and then the name of Llama's second norm means another place.
    sandwiched = hasattr(layer, "pre_feedforward_layernorm")
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return Block(
        norm=_norm(_part(layer, "input_layernorm")),
        qkv=Projection(_either(attention, ("qkv_proj",), ("q_proj", "k_proj", "v_proj")), buffers),
        q_norm=None if q_norm is None else _norm(q_norm),
        k_norm=None if k_norm is None else _norm(k_norm),
        turn=_turn(attention),
        out=Projection([_part(attention, "o_proj")], buffers),
        out_norm=_norm(_part(layer, "post_attention_layernorm")) if sandwiched else None,
        mlp_norm=_norm(_part(layer, "pre_feedforward_layernorm" if sandwiched else "post_attention_layernorm")),
        gate_up=Projection(_either(mlp, ("gate_up_proj",), ("gate_proj", "up_proj")), buffers),
        activation=_activation(mlp),
        down=Projection([_part(mlp, "down_proj")], buffers),
        down_norm=_norm(_part(layer, "post_feedforward_layernorm")) if sandwiched else None,
        heads=shape.query_heads,
        kv_heads=shape.kv_heads,
        head_dim=attention.head_dim,
        scoring=Scoring(float(attention.scaling), float(getattr(attention, "attn_logit_softcapping", None) or 0.0)),
        window=getattr(attention, "sliding_window", None),
        kind=kind,
    )


def _part(owner: nn.Module, name: str) -> nn.Module:
    part = getattr(owner, name, None)
    if not isinstance(part, nn.Module):
        raise UnknownPart(f"{type(owner).__name__} has no {name}")
    return part


def _either(owner: nn.Module, *choices: tuple[str, ...]) -> list[nn.Module]:
    for names in choices:
        if all(isinstance(getattr(owner, name, None), nn.Module) for name in names):
            return [getattr(owner, name) for name in names]
    raise UnknownPart(f"{type(owner).__name__} has neither {' nor '.join('+'.join(names) for names in choices)}")


def _activation(mlp: nn.Module) -> Apply:
    function = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)
    if function is None:
        raise UnknownPart(f"{type(mlp).__name__} has no activation")
    return F.silu if type(function).__name__ in ("SiLU", "SiLUActivation") else function


@torch.no_grad()
def _norm(module: nn.Module) -> Apply:
    """torch's fused RMS norm with this module's weights, where it computes the same; else the module.

    A copy of the module is asked in fp32, number by number: in 16 bits, or against the largest number, weights and one
    plus the weights (Gemma) are alike wherever a model has large ones.
    """
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(epsilon, float):
        return module
    shape, wide = weight.shape, weight.detach().float()
    # The second row is so small that epsilon counts.
    probe = torch.linspace(-2, 3, weight.numel(), device=weight.device)[None] * wide.new_tensor([[1.0], [epsilon**0.5]])
    try:
        want = copy.deepcopy(module).float()(probe)
    except (RuntimeError, TypeError, ValueError):
        return module
    for scale in (wide, 1.0 + wide):
        got = F.rms_norm(probe.double(), shape, scale.double(), epsilon)
        if torch.allclose(got, want.double(), rtol=16 * torch.finfo(torch.float32).eps, atol=1e-12):
            return Norm(scale, epsilon, weight.dtype)
    return module


@torch.no_grad()
def _turn(attention: Any) -> Turn:
    """The modeling file's rotation, or three operations in its place where they give the same."""
    apply = getattr(sys.modules.get(type(attention).__module__), "apply_rotary_pos_emb", None)
    if apply is None:
        raise UnknownPart(f"{type(attention).__name__} has no apply_rotary_pos_emb")
    dim = attention.head_dim
    x = torch.linspace(-1, 1, 3 * dim).view(1, 3, dim)
    angle = torch.linspace(0, 3, dim // 2).repeat(2).view(1, 1, dim)
    try:
        want = apply(x[:, :, None], x[:, :, None], angle.cos(), angle.sin())[0][:, :, 0]
        if torch.allclose(by_halves(x, angle.cos(), signed(angle.sin())), want, rtol=0, atol=1e-6):
            return _turn_halves
    except (RuntimeError, TypeError, ValueError):
        pass

    def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned: Tensor = apply(x[:, :, None], x[:, :, None], cos, sin)[0]
        return turned[:, :, 0]

    return turn


def _turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if cos.shape[-1] == x.shape[-1]:
        return by_halves(x, cos, signed(sin))
    part = cos.shape[-1]
    return torch.cat([by_halves(x[..., :part], cos, signed(sin)), x[..., part:]], dim=-1)


def _rotary(embed: Any, kinds: list[str | None]) -> Callable[[Tensor, Tensor], dict[Any, tuple[Tensor, Tensor]]]:
    def angles(hidden: Tensor, places: Tensor) -> dict[str | None, tuple[Tensor, Tensor]]:
        wide = hidden[:, None]
        return {kind: embed(wide, places, *(() if kind is None else (kind,))) for kind in kinds}

    return angles
