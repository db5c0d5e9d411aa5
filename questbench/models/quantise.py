"""Weights of 8 or 4 bits by torchao (extra ``quant``): weight-only, so that a decode step reads fewer bytes.

Random weights will do for speed; nothing is calibrated. The embedding stays as it is: a step reads one row of it.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from questbench.errors import PrerequisiteError, UsageError, first_line
from questbench.models._projection import weight_bytes

WEIGHTS = ("full", "int8", "int4")
"""Names of ``--weights``: as ``--dtype`` says, 8 bits, 4 bits."""
GROUP = {"cuda": 128, "cpu": 32}
"""Input channels that share a 4-bit scale, by device: the width that torchao has its fast path for."""
INSTALL = "Install it with: pip install 'questbench[quant]'"


def check(weights: str, device: str, dtype: str) -> None:
    """Refuse weights that cannot work on a device, before anything is loaded.

    Raises:
        UsageError: unknown kind, or a dtype that its kernels do not take.
        PrerequisiteError: torchao is not installed.
    """
    if weights not in WEIGHTS:
        raise UsageError(f"Unknown weights '{weights}'. Known: {', '.join(WEIGHTS)}.", "Use --weights full.")
    if weights == "full":
        return
    if dtype != "bf16":
        raise UsageError(f"--weights {weights} works with --dtype bf16 only, not {dtype}.", "Use --dtype bf16.")
    _torchao()


def quantise(model: PreTrainedModel, weights: str, *, head: bool = False) -> dict[str, Any]:
    """Replace the weights of the linear layers in place.

    Args:
        weights: one of :data:`WEIGHTS`.
        head: the output matrix too.

    Returns:
        What a record says about it: ``weights``, ``head``, ``linears``, ``format``.

    Raises:
        PrerequisiteError: torchao is missing, or has no kernel for this device.
        UsageError: the matrices do not divide into groups.
    """
    if weights == "full":
        return {"weights": "full", "head": False, "linears": 0, "format": str(model.dtype).removeprefix("torch.")}
    _torchao()
    from torchao.quantization import quantize_  # type: ignore[import-not-found, unused-ignore]

    device = next(model.parameters()).device.type
    output = model.get_output_embeddings()
    if head and output is not None and output.weight is model.get_input_embeddings().weight:
        raise UsageError("The output matrix of this model is its embedding.", "Leave out --quantise-head.")
    chosen = [m for m in model.modules() if type(m) is nn.Linear and (head or m is not output)]
    wanted = set(map(id, chosen))
    config, name = _config(weights, device, chosen)
    before = sum(map(weight_bytes, chosen))
    try:
        quantize_(model, config, filter_fn=lambda module, _: id(module) in wanted)
        with torch.no_grad():
            chosen[0](torch.zeros((1, chosen[0].in_features), dtype=model.dtype, device=device))
    except (RuntimeError, NotImplementedError, AssertionError, ImportError, ValueError) as error:
        raise PrerequisiteError(
            f"torchao cannot run {weights} weights on this {device}: {first_line(error)}",
            "Use --weights full, or another --device.",
        ) from error
    gc.collect()
    after = sum(map(weight_bytes, chosen))
    if after > 0.75 * before:
        raise PrerequisiteError(
            f"torchao left the weights at {after / before:.0%} of their size, so nothing was gained.",
            "Use --weights full.",
        )
    return {"weights": weights, "head": head, "linears": len(chosen), "format": name}


def _config(weights: str, device: str, chosen: list[nn.Linear]) -> tuple[Any, str]:
    from torchao.quantization import (  # type: ignore[import-not-found, unused-ignore]
        Int4WeightOnlyConfig,
        Int8WeightOnlyConfig,
    )

    if weights == "int8":
        return Int8WeightOnlyConfig(), "torchao int8 per channel"
    group = GROUP["cuda" if device == "cuda" else "cpu"]
    if odd := [m for m in chosen if m.in_features % group]:
        raise UsageError(
            f"4-bit weights share scales in groups of {group}, which {odd[0].in_features} inputs do not divide into.",
            "Use --weights int8.",
        )
    if device == "cuda":
        layout = "tile_packed_to_4d"
        return Int4WeightOnlyConfig(group_size=group, int4_packing_format=layout), f"torchao int4 {layout}, {group}"
    try:
        from torchao.prototype.quantization.int4 import (  # type: ignore[import-not-found, unused-ignore]
            PrototypeInt4WeightOnlyConfig,
        )
    except ImportError:
        raise PrerequisiteError(
            "This version of torchao has no 4-bit weights for the CPU.", "Use --weights int8, or torchao 0.18."
        ) from None
    return PrototypeInt4WeightOnlyConfig(group_size=group), f"torchao int4 for the CPU, {group}"


def _torchao() -> None:
    try:
        import torchao  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    except ImportError as error:
        raise PrerequisiteError(f"8- and 4-bit weights need torchao: {error}.", INSTALL) from None
