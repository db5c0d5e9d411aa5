"""transformers' own decode step at its best: its cache, and whichever of torch's ways attends fastest over it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from questbench._noise import Noise
from questbench.baselines import _ways
from questbench.baselines._base import Decode, Fastest, Still, fastest, right
from questbench.baselines._ways import Way
from questbench.errors import CellError
from questbench.measure import timer
from questbench.models._forward import cache_argument

OWN = "transformers"
"""The attention that transformers calls by itself: SDPA, by ``enable_gqa`` or over expanded heads."""
PREFIX = "questbench_torch_"


def decode(run: Decode, make: Callable[[], Any], *, grows: bool) -> Fastest:
    """A step over a cache of random entries. Ways are told apart over single layers, by the fastest it runs.

    Args:
        make: an empty cache.
        grows: whether it grows with every token, rather than being made for all of them.

    Raises:
        CellError: transformers has no SDPA attention for this model.
    """
    try:
        run.model.set_attn_implementation("sdpa")
    except (ImportError, ValueError) as error:
        raise CellError(f"transformers runs no SDPA here: {str(error).partition('. ')[0]}.") from None
    arm = TransformersArm(run, make(), grows)
    found = choose(run.model, arm.full(), arm.length, run.device)
    found.arm = arm
    return found


class TransformersArm:
    """A decode step by transformers alone, at the end of a prompt."""

    def __init__(self, run: Decode, cache: Any, grows: bool) -> None:
        self.model, self.cache, self.grows, self.length = run.model, cache, grows, run.seq_len - 1
        shape, device = (run.noise.rows, 1), next(run.model.parameters()).device
        self.ids = torch.ones(shape, dtype=torch.long, device=device)
        self.place = torch.full(shape, self.length, dtype=torch.long, device=device)
        self._cache_argument = cache_argument(run.model, cache)
        for layer in cache.layers:
            self._fill(layer, run.noise)

    def full(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the full-attention layers, ``[B, Hk, T, D]``."""
        held = [(layer.keys, layer.values) for layer in self.cache.layers]
        longest = max(k.shape[2] for k, _ in held)
        return [(k, v) for k, v in held if k.shape[2] == longest >= self.length]

    def _fill(self, layer: Any, noise: Noise) -> None:
        if not self.grows or layer.is_sliding:  # neither grows beyond what it is made for
            for k, v in noise.parts(self.length):
                layer.update(k, v)
            return
        k, v = noise.whole(self.length)
        layer.update(k[:, :, :0], v[:, :, :0])
        layer.keys, layer.values = k, v

    def setup(self) -> None:
        """Back to the prompt's length; a window that is full keeps its size by itself."""
        for layer in self.cache.layers:
            if hasattr(layer, "cumulative_length"):
                length = layer.cumulative_length
                length.fill_(self.length) if isinstance(length, Tensor) else setattr(
                    layer, "cumulative_length", self.length
                )
            if hasattr(layer, "cumulative_length_int"):  # the same number, kept twice
                layer.cumulative_length_int = self.length
            if self.grows:
                layer.keys, layer.values = layer.keys[:, :, : self.length], layer.values[:, :, : self.length]

    @torch.no_grad()
    def step(self, index: int) -> None:
        """One token per row, greedily."""
        del index
        out = self.model(
            input_ids=self.ids,
            position_ids=self.place,
            use_cache=True,
            logits_to_keep=1,
            **self._cache_argument,
        )
        self.ids = out.logits[:, -1].argmax(-1, keepdim=True)


def choose(model: PreTrainedModel, layers: list[tuple[Tensor, Tensor]], length: int, device: str) -> Fastest:
    """Find the fastest right way and make the model's attention use it.

    Args:
        layers: keys and values of the full-attention layers, ``[B, Hk, T, D]`` with ``T >= length``.
        length: entries that count.
    """
    if not layers:
        return Fastest(path=OWN)
    text = model.config.get_text_config(decoder=True)
    k, v = layers[0]
    rows, kv_heads, held, head_dim = k.shape
    heads = int(text.num_attention_heads)
    q = torch.randn((rows, heads, head_dim), generator=torch.Generator().manual_seed(0)).to(k.device, k.dtype)
    scale = head_dim**-0.5
    mask = None
    if held != length:
        mask = (torch.arange(held, device=k.device) < length)[None, None, None].expand(rows, 1, 1, -1)
    ways = {OWN: _own(heads // kv_heads), **(_ways.UNGROUPED if heads == kv_heads else _ways.GROUPED)}
    arms = {
        name: Still(lambda index, way=way: way(q, *layers[index % len(layers)], scale, mask))  # type: ignore[misc]
        for name, way in ways.items()
    }
    left_out: dict[str, str] = {}
    arms = right(arms, _ways.reference(q, k[:, :, :length], v[:, :, :length], scale), left_out)
    found = fastest(arms, functools.partial(timer.interleave, stopwatch=timer.stopwatch(device)), left_out)
    found.path = found.path or OWN
    if found.path != OWN:
        model.set_attn_implementation(register(found.path, ways[found.path]))
    return found


def register(name: str, way: Way) -> str:
    """Make a way known to transformers, for steps of one token; prompts go through its own SDPA.

    Returns:
        The name to set as the model's attention.
    """
    known = PREFIX + "".join(letter if letter.isalnum() else "_" for letter in name)

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        if query.shape[2] != 1:
            out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
            return out, None
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        mask = None if attention_mask is None else attention_mask[:, :, :, : key.shape[2]]
        return way(query[:, :, 0].contiguous(), key, value, scale, mask)[:, None], None

    AttentionInterface.register(known, attend)
    AttentionMaskInterface.register(known, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return known


def _own(group: int) -> Way:
    module: Any = SimpleNamespace(num_key_value_groups=group, is_causal=True, training=False)

    def way(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
        out: Tensor = sdpa_attention_forward(module, q[:, :, None], k, v, mask, scaling=scale)[0][:, 0]
        return out

    return way
