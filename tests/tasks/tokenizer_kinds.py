"""Tokenizers that put special tokens around every text, as hub models bring them, over the constructed vocabulary."""

from __future__ import annotations

import copy
import functools
from typing import Any

from tokenizers import processors

from questbench.models.constructed.tokenizer import build_tokenizer

KINDS = ("none", "bos", "eos", "both")


@functools.cache
def around(kind: str) -> Any:
    """A tokenizer that prepends a BOS, appends an EOS, both or none."""
    tokenizer = copy.deepcopy(build_tokenizer())
    first, last = (tokenizer.bos_token, tokenizer.bos_token_id), (tokenizer.eos_token, tokenizer.eos_token_id)
    single = [first[0]] * (kind in ("bos", "both")) + ["$A"] + [last[0]] * (kind in ("eos", "both"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(single), pair="$A $B", special_tokens=[first, last]
    )
    return tokenizer


def in_front(tokenizer: Any, kind: str) -> list[int]:
    """What stands in front of a prompt."""
    return [tokenizer.bos_token_id] if kind in ("bos", "both") else []
