"""transformers' own decode step at its best: which of torch's ways attends fastest over the cache as it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from questbench._memory import empty
from questbench.experiments import torch_ways
from questbench.experiments.e2e.noise import Noise
from questbench.experiments.failures import first_line, out_of_memory
from questbench.experiments.kernel.baselines import AGREE
from questbench.experiments.torch_ways import Way
from questbench.measure import stats, timer

OWN = "transformers"
"""The attention that transformers calls by itself: SDPA, by ``enable_gqa`` or over expanded heads."""
PREFIX = "questbench_torch_"
ROUNDS = 5
SECONDS = 5.0


@dataclass
class Chosen:
    """The fastest way over one cache."""

    path: str = OWN
    paths: dict[str, float] = field(default_factory=dict)
    """Median seconds of one layer's attention by every way."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Ways that were not timed, with the reason."""


class LayerArm:
    """One way of attending over the layers of a cache in turn."""

    def __init__(self, way: Way, q: Tensor, layers: list[tuple[Tensor, Tensor]], scale: float, mask: Any) -> None:
        self.way, self.q, self.layers, self.scale, self.mask = way, q, layers, scale, mask

    def setup(self) -> None:
        """Nothing grows."""

    def step(self, index: int) -> Tensor:
        """One layer's attention."""
        return self.way(self.q, *self.layers[index % len(self.layers)], self.scale, self.mask)


def choose(model: PreTrainedModel, layers: list[tuple[Tensor, Tensor]], length: int, device: str) -> Chosen:
    """Find the fastest right way and make the model's attention use it.

    The trial is over single layers; whole steps are timed afterwards, anew, by whichever way won.

    Args:
        layers: keys and values of the full-attention layers, ``[B, Hk, T, D]`` with ``T >= length``.
        length: entries that count.
    """
    text = model.config.get_text_config(decoder=True)
    found = Chosen()
    if not layers:
        return found
    k, v = layers[0]
    rows, kv_heads, held, head_dim = k.shape
    heads = int(text.num_attention_heads)
    q = torch.randn((rows, heads, head_dim), generator=torch.Generator().manual_seed(0)).to(k.device, k.dtype)
    scale = head_dim**-0.5
    mask = None
    if held != length:
        mask = (torch.arange(held, device=k.device) < length)[None, None, None].expand(rows, 1, 1, -1)
    want = torch_ways.reference(q, k[:, :, :length], v[:, :, :length], scale)
    ways = {OWN: _own(heads // kv_heads), **(torch_ways.UNGROUPED if heads == kv_heads else torch_ways.GROUPED)}
    arms: dict[str, LayerArm] = {}
    for name, way in ways.items():
        arm = LayerArm(way, q, layers, scale, mask)
        try:
            off = torch_ways.difference(arm.step(0), want)
        except Exception as error:
            if out_of_memory(error):
                raise
            found.left_out[name] = first_line(error)
            continue
        if off <= AGREE:
            arms[name] = arm
        else:
            found.left_out[name] = f"its result is off by {off:.1%} of the largest value"
    if not arms:
        return found
    timed = timer.interleave(
        arms,
        rounds_min=ROUNDS,
        rounds_max=ROUNDS,
        target_noise=0.0,
        max_seconds=SECONDS,
        stopwatch=timer.CudaEvents(device) if device.startswith("cuda") else None,
    )
    found.paths = {name: stats.median(samples.seconds) for name, samples in timed.items()}
    found.path = min(found.paths, key=found.paths.__getitem__)
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


class Control:
    """torch's attention over one layer of random entries: no code of ours, so that it tells how fast the machine is.

    Two runs of different code are compared by it (``report --compare``).
    """

    LENGTH = 8192
    """Longest text: a control need not be as long as what it is held against."""

    def __init__(self, noise: Noise, heads: int, seq_len: int) -> None:
        (k, v), *_ = noise.parts(min(seq_len, self.LENGTH))
        self.k, self.v = (empty(tuple(x.shape), x.dtype, x.device).copy_(x) for x in (k, v))
        generator = torch.Generator().manual_seed(0)
        self.q = torch.randn((k.shape[0], heads, k.shape[3]), generator=generator).to(k.device, k.dtype)

    def setup(self) -> None:
        """Nothing grows."""

    def step(self, index: int) -> Tensor:
        """One layer's attention, always by the same way."""
        return torch_ways.folded(self.q, self.k, self.v, float(self.q.shape[-1]) ** -0.5)
