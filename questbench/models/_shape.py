"""The shape of a model's caches, as its configuration tells it."""

from __future__ import annotations

from transformers import PreTrainedModel

from questbench.methods._base import CacheShape


def cache_shape(model: PreTrainedModel, page_size: int, index: int = 0, layers: int = 1) -> CacheShape:
    """The cache of layer ``index`` of ``layers``; those of one model may differ (Gemma 4's full and sliding ones do).

    Raises:
        AttributeError, TypeError: the configuration does not tell.
    """
    text = model.config.get_text_config(decoder=True)
    # Earlier versions of transformers have no configurations of layers.
    own = text.per_layer_config[index] if hasattr(text, "per_layer_config") else text
    heads = int(own.num_attention_heads)
    kv_heads = int(getattr(own, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(own, "head_dim", None) or own.hidden_size // heads)
    return CacheShape(heads, kv_heads, head_dim, page_size, int(model.dtype.itemsize), index, layers)
