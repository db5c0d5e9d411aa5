"""A flat plan in compiled steps: all that stands between two calls of attention is one call.

Made of a plan whose every part is of a known kind, as it is of Llama, Mistral, Qwen and Gemma on a CPU; other plans run
part by part. What is made is compared with the model as the plan itself is (``static_loop.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from questbench.kernels._between import Gate, Scale, Weights, enter, leave
from questbench.models import _plan
from questbench.models._plan import Apply, Block, Norm, Plan
from questbench.models._projection import Projection

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``attend(layer, q [B, Hq, D], k [B, Hk, 1, D], v [B, Hk, 1, D])`` -> ``[B, Hq * D]``."""

TANH = 2 * math.sqrt(2 / math.pi)
GATES = (Gate(1.0, 0.0), Gate(TANH, 0.044715 * TANH))
"""SiLU, and GELU in its tanh form."""


@dataclass(frozen=True)
class Heads:
    """Views of what :func:`enter` writes."""

    enter: Callable[[Tensor | None, Tensor | None], None]
    leave: Callable[[Tensor], None]
    q: Tensor
    k: Tensor
    v: Tensor
    kind: str | None


class Fused:
    """The compiled steps of a plan for a batch of one size; :func:`fuse` makes it.

    Args:
        plan: whose tensors are used, not copied.
        rows: of the batch.
    """

    def __init__(self, plan: Plan, rows: int) -> None:
        self.plan = plan
        head = _weights(plan.head)
        like = head[0][0]
        self._hidden = torch.empty((rows, like.shape[1]), dtype=like.dtype)
        self._logits = torch.empty((rows, sum(weight.shape[0] for weight, _ in head)), dtype=like.dtype)
        widths = {sum(weight.shape[0] for weight, _ in _weights(block.qkv)) for block in plan.blocks}
        self._outs = {width: torch.empty((rows, width), dtype=like.dtype) for width in widths}
        self._blocks = [self._heads(block) for block in plan.blocks]
        self._head = enter(self._hidden, _scale(plan.norm), head, self._logits)

    def logits(self, tokens: Tensor, places: Tensor, attend: Attend) -> Tensor:
        """``[B, vocabulary]`` behind tokens ``[B]`` at positions ``[B, 1]``; good until the next call."""
        hidden, plan = self._hidden, self.plan
        hidden.copy_(plan.embed(tokens))
        angles = plan.rotary(hidden, places)
        for index, block in enumerate(self._blocks):
            block.enter(*angles[block.kind])
            block.leave(attend(index, block.q.contiguous(), block.k, block.v))  # a copy only of several rows
        self._head(None, None)
        return self._logits

    def _heads(self, block: Block) -> Heads:
        if block.turn is not _plan._turn_halves:
            raise _plan.UnknownPart("another rotation than that of halves")
        both = block.q_norm is not None and block.k_norm is not None
        weights = _weights(block.qkv)
        out = self._outs[sum(weight.shape[0] for weight, _ in weights)]
        begin = enter(
            self._hidden,
            _scale(block.norm),
            weights,
            out,
            head_dim=block.head_dim,
            kv_heads=block.kv_heads,
            q_norm=_scale(block.q_norm) if both else None,
            k_norm=_scale(block.k_norm) if both else None,
        )
        (gate, up), (down,), (own,) = _halves(_weights(block.gate_up)), _weights(block.down), _weights(block.out)
        end = leave(
            self._hidden,
            own,
            _scale(block.out_norm),
            _scale(block.mlp_norm),
            gate,
            up,
            _gate(block.activation),
            down,
            _scale(block.down_norm),
        )
        parts = out.view(out.shape[0], -1, block.head_dim)
        q, k, v = parts.split([block.heads, block.kv_heads, block.kv_heads], dim=1)
        return Heads(begin, end, q, k[:, :, None], v[:, :, None], block.kind)


def fuse(plan: Plan, rows: int) -> Fused | None:
    """The compiled steps of a plan; ``None`` where some part of it is of another kind."""
    try:
        return Fused(plan, rows)
    except (_plan.UnknownPart, ValueError, TypeError):
        return None


def _weights(projection: Projection) -> list[Weights]:
    if projection.weights is None:
        raise _plan.UnknownPart("linear layers that are not compiled")
    return projection.weights


def _halves(weights: list[Weights]) -> tuple[Weights, Weights]:
    """Gate and up of an MLP, whose model may hold them in one matrix."""
    if len(weights) == 2:
        return weights[0], weights[1]
    ((weight, bias),) = weights
    (gate, up), biases = weight.chunk(2), (None, None) if bias is None else bias.chunk(2)
    return (gate, biases[0]), (up, biases[1])


def _scale(norm: Apply | None) -> Scale | None:
    if norm is None:
        return None
    if not isinstance(norm, Norm):
        raise _plan.UnknownPart("another norm than RMS")
    return Scale(norm.scale, norm.epsilon)


def _gate(activation: Apply) -> Gate:
    """The activation by its two numbers, told by what it computes."""
    x = torch.linspace(-12, 12, 241)
    wide = x.double()
    want = activation(x.clone()).double()
    for gate in GATES:
        if torch.allclose(want, wide * torch.sigmoid(gate.linear * wide + gate.cubic * wide**3), rtol=1e-5, atol=2e-6):
            return gate
    raise _plan.UnknownPart("another activation than SiLU and the tanh form of GELU")
