"""What every forward of a model has in common: how it is called, with which tokens, and whether it gave numbers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from questbench.errors import NotFiniteError, PrerequisiteError

NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
"""Dtypes as ``--dtype`` has them."""
RENAMED = (5, 24)
"""The version of transformers in which ``past_key_values`` became ``cache``."""


def cache_argument(model: PreTrainedModel, cache: Cache | None) -> dict[str, Any]:
    """``cache`` under the name by which this model's forward, and ``generate()``, takes it.

    transformers 5.24 renamed ``past_key_values`` to ``cache``; the old name warns there and will be removed.
    """
    names = inspect.signature(model.forward).parameters
    if "cache" in names or "past_key_values" in names:
        return {"cache" if "cache" in names else "past_key_values": cache}
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return {"cache" if version >= RENAMED else "past_key_values": cache}


def check_tokens(model: PreTrainedModel, tokens: Tensor) -> None:
    """Refuse tokens that the model has no embedding for. Nothing is asked of a device: only tokens of the host's are.

    Raises:
        PrerequisiteError: the tokenizer and the model do not belong together.
    """
    known = model.get_input_embeddings().num_embeddings
    if tokens.device.type != "cpu" or not tokens.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(tokens))
    if low < 0 or high >= known:
        raise PrerequisiteError(
            f"Token {low if low < 0 else high} is outside the model's vocabulary of {known:,} tokens.",
            "The tokenizer belongs to another model, or has tokens that this model was not given: use the tokenizer "
            "that came with the weights.",
        )


def check_finite(logits: Tensor, dtype: torch.dtype, where: str = "the model's logits") -> Tensor:
    """The logits, if none of them is NaN or infinite.

    Raises:
        NotFiniteError: some are.
    """
    if logits.numel():
        low, high = torch.aminmax(logits)  # NaN goes through, and no second tensor of this size is made
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise NotFiniteError(NAMES.get(dtype, str(dtype)), where)
    return logits
