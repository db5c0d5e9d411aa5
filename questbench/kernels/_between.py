"""What stands between two calls of attention in a decode step on the CPU, compiled: one call before, one behind it.

No op of the contract, as linear layers are none: every method shares them. The functions made here are for the decode
loop, which knows its tensors ahead: they are checked once, and a step passes on nothing but what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from questbench.kernels import _build

Weights = tuple[Tensor, Tensor | None]
"""Weights ``[outputs, inputs]`` and bias ``[outputs]`` of a linear layer, both contiguous and in the stored type."""
MOST_WEIGHTS = 3
"""Linear layers that share an input."""


@dataclass(frozen=True, eq=False)
class Scale:
    """An RMS norm: ``x / sqrt(mean(x^2) + epsilon) * scale``."""

    scale: Tensor
    """fp32, contiguous, as wide as what is normalised."""
    epsilon: float


@dataclass(frozen=True)
class Gate:
    """An activation ``x / (1 + exp(-(linear x + cubic x^3)))``."""

    linear: float
    cubic: float


def enter(
    hidden: Tensor,
    norm: Scale | None,
    weights: Sequence[Weights],
    out: Tensor,
    *,
    head_dim: int = 0,
    kv_heads: int = 0,
    q_norm: Scale | None = None,
    k_norm: Scale | None = None,
) -> Callable[[Tensor | None, Tensor | None], None]:
    """From a hidden state to the outputs of linear layers, with a norm before and, for heads, rotation behind them.

    Values are rounded to the stored type where a module would return them: behind norms, layers and the rotation.

    Args:
        hidden: ``[B, inputs]``, read in every call.
        norm: of ``hidden``; ``None`` where there is none.
        weights: of one to three layers, whose outputs lie side by side.
        out: ``[B, outputs]``, written in every call. With ``head_dim`` its rows are the queries of all heads, the keys
            and the values of ``kv_heads`` heads each.
        q_norm, k_norm: of the channels of a head, before it is turned.

    Returns:
        ``call(cos, sin)``, both ``[B, 1, R]`` or ``[1, 1, R]``, which turns the halves of the first R channels of
        queries and keys; ``None`` without heads. It keeps all tensors alive.

    Raises:
        ValueError, TypeError: shapes or types do not fit; ``call`` raises them too.
    """
    if not 1 <= len(weights) <= MOST_WEIGHTS:
        raise ValueError(f"{len(weights)} linear layers share an input: 1 to {MOST_WEIGHTS} can")
    padded = [*weights, *[(None, None)] * (MOST_WEIGHTS - len(weights))]
    call = _build.load_cpu().enter(
        hidden,
        *_split(norm),
        *(weight for weight, _ in padded),
        *(bias for _, bias in padded),
        out,
        head_dim,
        kv_heads,
        *_split(q_norm),
        *_split(k_norm),
    )
    kept = hidden, norm, tuple(weights), out, q_norm, k_norm

    def run(cos: Tensor | None = None, sin: Tensor | None = None, kept: object = kept) -> None:
        call(cos, sin, torch.get_num_threads())

    return run


def leave(
    hidden: Tensor,
    out: Weights,
    out_norm: Scale | None,
    mlp_norm: Scale | None,
    gate: Weights,
    up: Weights,
    activation: Gate,
    down: Weights,
    down_norm: Scale | None,
) -> Callable[[Tensor], None]:
    """From the output of attention to the next hidden state: output matrix, residual, gated MLP, residual.

    Values are rounded to the stored type behind layers, norms, the product of ``act(gate)`` and ``up``, and residuals.

    Args:
        hidden: ``[B, width]``, read and written in every call.
        out, down: their products are added to ``hidden``, behind ``out_norm`` and ``down_norm`` where there are any.
        mlp_norm: of what ``gate`` and ``up`` read.
        activation: of the products of ``gate``.

    Returns:
        ``call(attended)`` for ``[B, heads * head_dim]``. It keeps all tensors alive.

    Raises:
        ValueError, TypeError: shapes or types do not fit; ``call`` raises them too.
    """
    call = _build.load_cpu().leave(
        hidden,
        *out,
        *_split(out_norm),
        *_split(mlp_norm),
        *gate,
        *up,
        activation.linear,
        activation.cubic,
        *down,
        *_split(down_norm),
    )
    kept = hidden, out, out_norm, mlp_norm, gate, up, down, down_norm

    def run(attended: Tensor, kept: object = kept) -> None:
        call(attended, torch.get_num_threads())

    return run


def _split(norm: Scale | None) -> tuple[Tensor | None, float]:
    return (None, 0.0) if norm is None else (norm.scale, norm.epsilon)
