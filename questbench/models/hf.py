"""Route the attention of a transformers model through questbench: caches under a method, forks, one-line forward.

Importing this module registers the attention function ``questbench`` with transformers:

    cache = build_cache(model, Quest(budget=1024))
    model.set_attn_implementation("questbench")
    model.generate(**inputs, past_key_values=cache)        # cache=cache from transformers 5.24 on

A forward of several tokens is a prefill: dense, then the method drops what it does not keep. A forward of one token is
a decode step. ``generate(prefill_chunk_size=...)`` would make evicting methods drop entries after every chunk.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from questbench import kernels
from questbench.attention import Observer
from questbench.cache import Rotate
from questbench.errors import PrerequisiteError, UsageError
from questbench.kernels._ops import Ops
from questbench.methods._base import Method, PromptMass
from questbench.methods.dense import Dense
from questbench.models._forward import cache_argument, check_finite, check_tokens
from questbench.models._padding import whole_mask
from questbench.models._registration import NAME, register
from questbench.models._shape import cache_shape
from questbench.models._widening import widened
from questbench.models.hf_cache import MethodLayer, Settings, SparseCache
from questbench.models.rotary import rotations

PREFILL_TOKENS = 2048
"""Tokens of a prompt that go through the model at once, unless told otherwise."""
KNOWN_LAYERS = {"DynamicLayer", "DynamicSlidingWindowLayer"}

register()


def build_cache(
    model: PreTrainedModel,
    method: Method,
    *,
    dense_layers: int = 2,
    page_size: int = 16,
    ops: Ops | str | None = None,
    capacity: int = 0,
    observer: Observer | None = None,
    collect: frozenset[PromptMass] = frozenset(),
    bounds: bool | None = None,
) -> SparseCache:
    """A cache for ``model`` that reads and keeps what ``method`` says.

    Args:
        model: any causal model of transformers whose attention goes through its attention interface.
        method: the policy of the full-attention layers from ``dense_layers`` on.
        dense_layers: layers at the start that stay dense.
        page_size: entries per page.
        ops: backend, by name or ready; the device's own by default.
        capacity: entries per row to allocate ahead.
        observer: watches every decode step.
        collect: attention mass of the prefill to keep for :func:`fork`: see ``Method.prompt_mass``.
        bounds: keep page bounds even if ``method`` needs none, so that forks that do can share pages.

    Raises:
        PrerequisiteError: the model cannot work with such a cache.
        UsageError: the parameters make no sense with this model.
    """
    layers = _template(model)
    backend = ops if isinstance(ops, Ops) else kernels.load(ops or next(model.parameters()).device.type)
    settings = Settings(page_size, backend, capacity, observer, collect, bounds)
    full = [index for index, layer in enumerate(layers) if not layer.is_sliding]
    methods = _assign(method, full, dense_layers, page_size)
    _check_shape(model, backend, method, page_size, [index for index in full if index >= dense_layers] or full[:1])
    turns = _rotations(model, method, backend, len(layers))
    for index in full:
        layers[index] = MethodLayer(index, methods[index], settings, turns[index], layers=len(layers))
    return SparseCache(layers, model, settings)


def fork(
    cache: SparseCache,
    method: Method,
    *,
    dense_layers: int = 2,
    page_size: int | None = None,
    observer: Observer | None = None,
) -> SparseCache:
    """A cache under ``method`` that starts from what ``cache`` holds after a prefill; pages are shared until written.

    Raises:
        UsageError: the parameters make no sense with this model.
        ValueError: the method needs attention mass that ``cache`` did not collect.
    """
    settings = dataclasses.replace(
        cache.settings,
        page_size=page_size or cache.settings.page_size,
        observer=observer,
        collect=frozenset(),
        bounds=None,
    )
    full = [layer.index for layer in cache.layers if isinstance(layer, MethodLayer)]
    methods = _assign(method, full, dense_layers, settings.page_size)
    sparse = [index for index in full if index >= dense_layers]
    _check_shape(cache.model, settings.ops, method, settings.page_size, sparse)
    turns = _rotations(cache.model, method, settings.ops, len(cache.layers))
    # Sliding-window layers replace their tensors rather than write to them, so that a shallow copy is a copy.
    layers = [
        layer.fork(methods[layer.index], settings, turns[layer.index])
        if isinstance(layer, MethodLayer)
        else copy.copy(layer)
        for layer in cache.layers
    ]
    return SparseCache(layers, cache.model, settings)


def release(cache: Cache) -> None:
    """Give the pages of a cache back; it is empty afterwards."""
    cache.reset()


@torch.no_grad()
def forward(
    model: PreTrainedModel,
    ids: Tensor | Sequence[int] | Sequence[Sequence[int]],
    cache: Cache,
    *,
    all_logits: bool = False,
    **inputs: Any,
) -> Tensor:
    """Feed tokens and return the logits of the last position, ``[B, vocabulary]``.

    Args:
        model: the model that ``cache`` was built for; it is switched to the attention ``questbench``.
        ids: ``[B, n]``, or one row.
        cache: grows by these tokens.
        all_logits: return those of every position, ``[B, n, vocabulary]``.
        inputs: passed on, such as ``attention_mask`` and ``position_ids``.

    Raises:
        NotFiniteError: the logits hold NaN or infinity.
        PrerequisiteError: a token is outside the model's vocabulary.
    """
    logits = _run(model, _ready(model, ids), cache, None if all_logits else 1, inputs)
    return check_finite(logits if all_logits else logits[:, -1], model.dtype)


def _ready(model: PreTrainedModel, ids: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    """Tokens ``[B, n]`` on the device of a model that is switched to our attention."""
    if model.config.get_text_config(decoder=True)._attn_implementation != NAME:
        model.set_attn_implementation(NAME)
    tokens = torch.as_tensor(ids, dtype=torch.long)
    check_tokens(model, tokens)
    tokens = tokens.to(next(model.parameters()).device)
    return tokens[None] if tokens.dim() == 1 else tokens


@torch.no_grad()
def _run(model: PreTrainedModel, tokens: Tensor, cache: Cache, last: int | None, inputs: dict[str, Any]) -> Tensor:
    """Logits of the ``last`` positions at least, of all by default; a model may not know how to leave the others out.

    The output matrix is the largest of a small model: a part of a prompt that asks for no logits does not read it.
    """
    if last is not None and "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs = {**inputs, "logits_to_keep": last or torch.empty(0, dtype=torch.long, device=tokens.device)}
    with widened(model, model.dtype, tokens.numel()):
        logits: Tensor = model(input_ids=tokens, use_cache=True, **cache_argument(model, cache), **inputs).logits
    return logits


def prefill(
    model: PreTrainedModel,
    ids: Tensor | Sequence[int] | Sequence[Sequence[int]],
    cache: SparseCache,
    *,
    chunk: int = PREFILL_TOKENS,
    mask: Tensor | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Feed a prompt in parts and return the logits of its last position, ``[B, vocabulary]``.

    What lies beside the cache (activations, masks) is as long as one part, so that memory beyond the cache does not
    grow with the prompt. The rule is one for all methods: the prompt is read densely, the mass that a method judges by
    is summed over all parts, and what is dropped is dropped once, after the last part. The outcome is that of a prompt
    in one piece.

    Args:
        ids: ``[B, n]``, or one row; padding on the left.
        cache: an empty cache of :func:`build_cache`, or one that this text goes on with.
        chunk: tokens per part.
        mask: 0 on padding: ``[B, n]`` of these tokens, or ``[B, seen + n]`` of all columns that ``cache`` has seen too,
            as ``generate()`` takes it.
        progress: told (tokens done, tokens in all) after each part.

    Raises:
        NotFiniteError: the logits hold NaN or infinity.
        UsageError: a mask that does not fit the tokens or the cache.
    """
    if chunk < 1:
        raise UsageError(f"A prompt cannot be fed in parts of {chunk} tokens.", "Use --prefill-chunk 2k.")
    tokens = _ready(model, ids)
    total = tokens.shape[1]
    whole = whole_mask(cache, mask, *tokens.shape)
    before = 0 if whole is None else whole.shape[1] - total
    settings = cache.settings
    inputs: dict[str, Any] = {}
    try:
        for start in range(0, total, chunk):
            stop = min(start + chunk, total)
            settings.more, settings.resumed = stop < total, start > 0
            if whole is not None:
                end = before + stop
                places = (whole[:, :end].long().cumsum(1) - 1).clamp(min=0)
                inputs = {"attention_mask": whole[:, :end], "position_ids": places[:, before + start :]}
            # What is not finite in an earlier part is in what every later token attends to.
            logits = _run(model, tokens[:, start:stop], cache, int(stop == total), inputs)
            if progress is not None:
                progress(stop, total)
    finally:
        settings.more = settings.resumed = False
    return check_finite(logits[:, -1], model.dtype)


def _template(model: PreTrainedModel) -> list[Any]:
    """The layers that transformers itself would use, if all of them are of a kind that we know.

    Raises:
        PrerequisiteError: they are not, or attention does not go through the interface.
    """
    name, config = type(model).__name__, model.config
    if getattr(config, "is_encoder_decoder", False):
        raise PrerequisiteError(f"{name} is an encoder-decoder model.", "Use a decoder-only model.")
    if not model._can_set_attn_implementation():
        raise PrerequisiteError(
            f"The attention of {name} does not go through the attention interface of transformers.",
            "Use a model that supports set_attn_implementation(), such as Llama, Mistral, Qwen, Gemma or Phi.",
        )
    text = config.get_text_config(decoder=True)
    try:
        layers = list(DynamicCache(config=config).layers)
    except (AttributeError, KeyError, TypeError) as error:
        raise PrerequisiteError(f"{name} has layers without a known kind of cache ({error}).") from error
    kinds = getattr(text, "layer_types", None) or []
    chunked = "chunked_attention" in kinds or (not kinds and getattr(text, "attention_chunk_size", None))
    strange = sorted({type(layer).__name__ for layer in layers} - KNOWN_LAYERS)
    if chunked:
        reason = "chunked attention layers"
    elif getattr(text, "num_kv_shared_layers", 0):
        reason = "layers that share keys and values"
    elif getattr(text, "kv_lora_rank", None):
        reason = "latent (MLA) attention"
    elif strange or not layers:
        reason = f"layers of another kind than full or sliding attention ({', '.join(strange) or 'none declared'})"
    else:
        return layers
    raise PrerequisiteError(
        f"{name} has {reason}, which questbench does not support.", "Use a model with full or sliding attention."
    )


def _check_shape(model: PreTrainedModel, ops: Ops, method: Method, page_size: int, sparse: list[int]) -> None:
    """Refuse what the backend or the method has no way for before anything is fed, if the configuration tells shapes.

    Args:
        sparse: the layers under the method.
    """
    layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 1)
    for index in sparse:
        try:
            shape = cache_shape(model, page_size, index, layers)
        except (AttributeError, TypeError):
            return
        ops.limits.check(
            ops.name,
            query_heads=shape.query_heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            page_size=page_size,
        )
        method.head_groups(shape)


def _assign(method: Method, full: list[int], dense_layers: int, page_size: int) -> dict[int, Method]:
    """The method of every full-attention layer."""
    if page_size < 1:
        raise UsageError(f"Page size {page_size} is not positive.", "Use --page-size 16.")
    if dense_layers < 0:
        raise UsageError(f"Dense layers cannot be {dense_layers}.", "Use --dense-layers 2.")
    method.check(page_size)
    if method.budgeted and not full:
        raise PrerequisiteError(
            f"All layers of this model slide: there is nothing for {method.name} to make sparse.",
            "Use a model with full-attention layers.",
        )
    if method.budgeted and full[-1] < dense_layers:
        raise UsageError(
            f"--dense-layers {dense_layers} leaves no sparse layer: the last of the model's {len(full)} full-attention "
            f"layers is number {full[-1]}.",
            f"Use --dense-layers {full[-1]} or fewer.",
        )
    return {index: Dense() if index < dense_layers else method for index in full}


def _rotations(model: PreTrainedModel, method: Method, ops: Ops, layers: int) -> list[Rotate | None]:
    return rotations(model, compiled=ops.name == "cpu") if method.needs_rotation else [None] * layers
