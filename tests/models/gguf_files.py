"""A tiny Llama as a GGUF file, written by the gguf package; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

TOKENS = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(33, 127)), "Ġ", "yz"]
HIDDEN, LAYERS, HEADS, KV_HEADS, FEED_FORWARD = 64, 2, 4, 2, 96


def write(path: Path, *, architecture: str = "llama", weights: bool = True, tokenizer: bool = True) -> Path:
    """Write the file; its matrices are Q8_0, its vectors fp32."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_Q8_0))
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(TOKENS)
        writer.add_token_merges(["y z"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
    for name, shape in _shapes().items() if weights else ():
        values = np.random.default_rng(len(name)).normal(0, 0.1, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, dtype=np.float32))
        else:
            packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def cut(path: Path, folder: Path, count: int, *, first: int = 0) -> list[Path]:
    """The file in parts, as packages carry it."""
    content = path.read_bytes()
    size = -(-len(content) // count)
    parts = []
    for number in range(count):
        parts.append(folder / f"{path.name}.part{number + first:02d}")
        parts[-1].write_bytes(content[number * size : (number + 1) * size])
    return parts


def _shapes() -> dict[str, tuple[int, ...]]:
    wide, narrow = HIDDEN, HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(TOKENS), wide), "output_norm.weight": (wide,)}
    for layer in range(LAYERS):
        parts = {
            "attn_norm": (wide,),
            "attn_q": (wide, wide),
            "attn_k": (narrow, wide),
            "attn_v": (narrow, wide),
            "attn_output": (wide, wide),
            "ffn_norm": (wide,),
            "ffn_gate": (FEED_FORWARD, wide),
            "ffn_up": (FEED_FORWARD, wide),
            "ffn_down": (wide, FEED_FORWARD),
        }
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in parts.items()}
    return shapes
