"""Turn queries by a number of positions with the model's own rotary embedding, checked against the model itself."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from questbench.cache import Rotate
from questbench.models._forward import cache_argument
from questbench.models._rotation import by_difference

CHANGING = ("dynamic", "longrope")
"""Kinds of rotary embedding whose frequencies change with the length: no rotation by a difference exists."""
TOKENS, SHIFT = 8, 5
"""Tokens to try a rotation out on, and by how many positions."""

_known: weakref.WeakKeyDictionary[PreTrainedModel, dict[bool, list[Rotate | None]]] = weakref.WeakKeyDictionary()


def rotations(model: PreTrainedModel, *, compiled: bool = False) -> list[Rotate | None]:
    """One rotation per layer; ``None`` where the layer's keys are not turned by a fixed angle per position.

    With ``compiled`` by our kernels for the CPU, where they fit the model's rotary embedding. Every rotation is tried
    out: the keys of some tokens at two positions must be turned into each other. (A text of one token attends to itself
    alone, so nothing else in the model depends on its position.) Layers that use no positions at all get the identity.
    """
    known = _known.setdefault(model, {})
    if compiled not in known:
        near, far = _keys(model, 0), _keys(model, SHIFT)
        found: list[Rotate | None] = []
        for layer in range(len(near)):
            ways = (_compiled_rotation,) if compiled else ()
            candidates = (*(way(model, layer) for way in (*ways, _delta_rotation)), _unturned)
            found.append(next((turn for turn in candidates if _fits(turn, near[layer], far[layer])), None))
        known[compiled] = found
    return known[compiled]


def changes_with_length(model: PreTrainedModel) -> bool:
    """Whether some layer's frequencies depend on how long the text is."""
    kind: Any = getattr(getattr(model.get_decoder(), "rotary_emb", None), "rope_type", "default")
    return any(one in CHANGING for one in (kind.values() if isinstance(kind, dict) else [kind]))


def _unturned(x: Tensor, delta: Tensor) -> Tensor:
    """For layers without positions."""
    return x


def _compiled_rotation(model: PreTrainedModel, layer: int) -> Rotate | None:
    """The rotation of one layer by the frequencies of its model; whether they are used as here is tried out."""
    embed = getattr(model.get_decoder(), "rotary_emb", None)
    kinds = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or [None] * (layer + 1)
    names = (f"{kinds[layer]}_inv_freq", "inv_freq")
    frequency = next((found for name in names if (found := getattr(embed, name, None)) is not None), None)
    if not isinstance(frequency, Tensor) or frequency.device.type != "cpu" or changes_with_length(model):
        return None
    return by_difference(frequency.detach().float().contiguous(), compiled=True)


def _delta_rotation(model: PreTrainedModel, layer: int) -> Rotate | None:
    """The rotation of one layer, built from the parts that the modeling file itself uses."""
    decoder = model.get_decoder()
    embed = getattr(decoder, "rotary_emb", None)
    apply: Callable[..., Any] | None = getattr(sys.modules[type(decoder).__module__], "apply_rotary_pos_emb", None)
    if embed is None or apply is None:
        return None
    kind: Any = getattr(embed, "rope_type", "default")
    scaling = getattr(embed, "attention_scaling", 1.0)
    extra: tuple[str, ...] = ()
    if "layer_type" in inspect.signature(embed.forward).parameters:
        layer_type = model.config.get_text_config(decoder=True).layer_types[layer]
        kind, extra = kind.get(layer_type, "default"), (layer_type,)
        scaling = getattr(embed, f"{layer_type}_attention_scaling", 1.0)
    if kind in CHANGING:
        return None

    def rotate(x: Tensor, delta: Tensor) -> Tensor:
        wide = x.float()[:, :, None]
        cos, sin = embed(wide, delta[:, None], *extra)
        # YaRN scales cosine and sine; a query that was scaled once must not be scaled again.
        turned: Tensor = apply(wide, wide, cos / scaling, sin / scaling)[0]
        return turned[:, :, 0].to(x.dtype)

    return rotate


@torch.no_grad()
def _keys(model: PreTrainedModel, position: int) -> list[Tensor | None]:
    """The keys ``[TOKENS, Hk, D]`` of single tokens that stand at ``position``, in every layer."""
    cache = DynamicCache(config=model.config)
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings
    tokens = torch.linspace(0, vocabulary - 1, TOKENS, device=device).long()[:, None]
    place = torch.full((TOKENS, 1), position, dtype=torch.long, device=device)
    model(input_ids=tokens, position_ids=place, use_cache=True, **cache_argument(model, cache))
    return [None if getattr(layer, "keys", None) is None else layer.keys[:, :, 0] for layer in cache.layers]


def _fits(turn: Rotate | None, near: Tensor | None, far: Tensor | None) -> bool:
    if turn is None or near is None or far is None:
        return False
    try:
        turned = turn(near, torch.full((near.shape[0],), SHIFT, device=near.device)).float()
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False  # A rotary embedding of another form than cosine and sine per channel.
    tolerance = 1e-4 if near.dtype in (torch.float32, torch.float64) else 2e-2
    return bool((turned - far.float()).abs().max() <= tolerance * far.float().abs().max())
