"""The paged KV cache: pages and their owners, what is kept of them, one layer, and layers in groups of heads."""

from questbench.cache.groups import GroupedLayer, Layer, fork_layer, make_layer
from questbench.cache.layer import LayerCache
from questbench.cache.store import Rotate

__all__ = ["GroupedLayer", "Layer", "LayerCache", "Rotate", "fork_layer", "make_layer"]
