"""A retrieval model set by hand: a stock ``LlamaForCausalLM`` whose answers are known before it runs.

Two layers of attention are enough to look something up: layer 0 tells every token which tokens stand before it, layer 1
finds the place where the same few tokens stood before and copies what followed (an induction head, written down rather
than trained). Nothing is downloaded and nothing is trained; :func:`build` takes about a second.

    codes.py        what a token looks like to the two layers (no torch)
    vocabulary.py   the listed words
    tokenizer.py    a byte-level BPE tokenizer over them
    weights.py      the matrices

``docs/constructed.md`` explains the construction and what it can and cannot show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


DENSE_LAYERS = 1
"""Default of ``--dense-layers``: layer 0 is local, retrieval sits in layer 1, so only that one may be sparse."""


def build(dtype: torch.dtype | None = None) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model, in evaluation mode on the CPU, and its tokenizer.

    Args:
        dtype: of the parameters; fp32 by default, fp16 and bf16 retrieve as exactly.
    """
    import torch

    from questbench.models.constructed.tokenizer import build_tokenizer
    from questbench.models.constructed.weights import build_model

    tokenizer = build_tokenizer()
    return build_model(tokenizer, torch.float32 if dtype is None else dtype), tokenizer
