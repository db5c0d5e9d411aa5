"""Shapes of well-known models, from their public configurations: ``--shape`` of kernel, ``--model shape:NAME``.

Pure Python, so that ``kernel`` and ``ls models`` need no transformers. Only dense decoders stand here.

Left out is what changes no step's time: scaled rotary frequencies (Llama 3, long Phi and Qwen texts) and Gemma's query
scale. One shape differs from its configuration: phi-3-mini attends fully here, as the long-text releases of Phi-3 do in
effect, while the 4k release slides a window of 2,047 tokens in all layers and leaves no method anything to do.
"""

from __future__ import annotations

from dataclasses import dataclass

from questbench import registry
from questbench.errors import UsageError


@dataclass(frozen=True)
class Shape:
    """The dimensions of a decoder-only transformer."""

    architecture: str
    """``model_type`` in transformers."""
    layers: int
    hidden: int
    ff: int
    heads: int
    """Query heads."""
    kv_heads: int
    head_dim: int
    vocab: int
    rope_theta: float
    context: int
    """Longest text of the public configuration, in tokens."""
    tied: bool = False
    """Input and output embeddings are one matrix."""


# fmt: off
SHAPES: dict[str, Shape] = {
    #                           type      layers hidden     ff  heads   kv  dim   vocab      theta  context
    "gemma-2-2b":         Shape("gemma2",    26,  2304,   9216,     8,   4, 256, 256000,     1e4,    8192, True),
    "gemma-2-9b":         Shape("gemma2",    42,  3584,  14336,    16,   8, 256, 256000,     1e4,    8192, True),
    "gemma-2-27b":        Shape("gemma2",    46,  4608,  36864,    32,  16, 128, 256000,     1e4,    8192, True),
    "llama-2-7b":         Shape("llama",     32,  4096,  11008,    32,  32, 128,  32000,     1e4,    4096),
    "llama-2-13b":        Shape("llama",     40,  5120,  13824,    40,  40, 128,  32000,     1e4,    4096),
    "llama-2-70b":        Shape("llama",     80,  8192,  28672,    64,   8, 128,  32000,     1e4,    4096),
    "llama-3.1-8b":       Shape("llama",     32,  4096,  14336,    32,   8, 128, 128256,     5e5,  131072),
    "llama-3.1-70b":      Shape("llama",     80,  8192,  28672,    64,   8, 128, 128256,     5e5,  131072),
    "llama-3.2-1b":       Shape("llama",     16,  2048,   8192,    32,   8,  64, 128256,     5e5,  131072, True),
    "llama-3.2-3b":       Shape("llama",     28,  3072,   8192,    24,   8, 128, 128256,     5e5,  131072, True),
    "mistral-7b-v0.3":    Shape("mistral",   32,  4096,  14336,    32,   8, 128,  32768,     1e6,   32768),
    "phi-3-mini":         Shape("phi3",      32,  3072,   8192,    32,  32,  96,  32064,     1e4,    4096),
    "phi-4":              Shape("phi3",      40,  5120,  17920,    40,  10, 128, 100352,   2.5e5,   16384),
    "qwen2.5-0.5b":       Shape("qwen2",     24,   896,   4864,    14,   2,  64, 151936,     1e6,   32768, True),
    "qwen2.5-1.5b":       Shape("qwen2",     28,  1536,   8960,    12,   2, 128, 151936,     1e6,  131072, True),
    "qwen2.5-7b":         Shape("qwen2",     28,  3584,  18944,    28,   4, 128, 152064,     1e6,  131072),
    "qwen2.5-14b":        Shape("qwen2",     48,  5120,  13824,    40,   8, 128, 152064,     1e6,  131072),
    "qwen3-0.6b":         Shape("qwen3",     28,  1024,   3072,    16,   8, 128, 151936,     1e6,   40960, True),
    "qwen3-1.7b":         Shape("qwen3",     28,  2048,   6144,    16,   8, 128, 151936,     1e6,   40960, True),
    "qwen3-4b":           Shape("qwen3",     36,  2560,   9728,    32,   8, 128, 151936,     1e6,   40960, True),
    "qwen3-8b":           Shape("qwen3",     36,  4096,  12288,    32,   8, 128, 151936,     1e6,   40960),
    "qwen3-14b":          Shape("qwen3",     40,  5120,  17408,    40,   8, 128, 151936,     1e6,   40960),
    "qwen3-32b":          Shape("qwen3",     64,  5120,  25600,    64,   8, 128, 151936,     1e6,   40960),
    "sheared-llama-1.3b": Shape("llama",     24,  2048,   5504,    16,  16, 128,  32000,     1e4,    4096),
    "sheared-llama-2.7b": Shape("llama",     32,  2560,   6912,    20,  20, 128,  32000,     1e4,    4096),
    "smollm2-135m":       Shape("llama",     30,   576,   1536,     9,   3,  64,  49152,     1e5,    8192, True),
    "tinyllama-1.1b":     Shape("llama",     22,  2048,   5632,    32,   4,  64,  32000,     1e4,    2048),
    "yi-6b":              Shape("llama",     32,  4096,  11008,    32,   4, 128,  64000,     5e6,    4096),
}
# fmt: on


def named(name: str, layers: int | None = None) -> Shape:
    """The shape of that name.

    Raises:
        UsageError: unknown shape, or a number of layers that it does not have.
    """
    if name not in SHAPES:
        raise registry.unknown("shape", name, sorted(SHAPES))
    shape = SHAPES[name]
    if layers is not None and not 1 <= layers <= shape.layers:
        raise UsageError(f"{name} has {shape.layers} layers, not {layers}.", f"Use 1 to {shape.layers} layers.")
    return shape
