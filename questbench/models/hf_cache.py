"""A transformers ``Cache`` whose layers are ours: ``update()`` hands out a handle, attention does the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from questbench import attention
from questbench.attention import Observer, Scoring
from questbench.cache import Layer, Rotate, fork_layer, make_layer
from questbench.errors import PrerequisiteError, UsageError
from questbench.kernels._ops import Ops
from questbench.methods._base import CacheShape, Method, PromptMass


class KVHandle:
    """What ``update()`` returns in place of keys and values. Only the attention function ``questbench`` can read it."""

    __slots__ = ("layer",)
    layer: MethodLayer

    def __init__(self, layer: MethodLayer) -> None:
        object.__setattr__(self, "layer", layer)

    def __getattr__(self, name: str) -> NoReturn:
        _refuse_use()

    def __getitem__(self, index: object) -> NoReturn:
        _refuse_use()

    @classmethod
    def __torch_function__(cls, *args: object, **kwargs: object) -> NoReturn:
        _refuse_use()


def _refuse_use() -> NoReturn:
    raise UsageError(
        "This model's attention tried to read keys and values from a questbench cache, which holds them in pages.",
        "Call model.set_attn_implementation('questbench') first. If that is done, this model is not supported.",
    )


@dataclass
class Settings:
    """What all layers of one cache share."""

    page_size: int
    ops: Ops
    capacity: int = 0
    observer: Observer | None = None
    collect: frozenset[PromptMass] = frozenset()
    bounds: bool | None = None
    more: bool = False
    """The prompt goes on after this forward: nothing is dropped yet, and one token is no decode step."""
    resumed: bool = False
    """This forward goes on with a prompt."""
    _mask: Tensor | None = field(default=None, init=False)
    _valid: list[int] | None = field(default=None, init=False)

    def decode(self, store: Layer, query: Tensor, scoring: Scoring) -> Tensor:
        """Attention of one new query ``[B, Hq, D]`` per row, watched and collected from as these settings say."""
        return attention.decode(store, query, scoring, self.observer, self.collect)

    def valid(self, mask: Tensor | None, columns: int) -> list[int] | None:
        """Valid entries per row among the newest ``columns``, from the 2D mask; ``None`` where all are.

        Raises:
            UsageError: padding that is not on the left, or a decode step without a token in some row.
        """
        if mask is None:
            return None
        # All full-attention layers get the same tensor: look at it once per forward, not once per layer.
        if mask is not self._mask:
            self._mask, self._valid = mask, _count_valid(mask, columns)
        return self._valid


def _count_valid(mask: Tensor, columns: int) -> list[int] | None:
    if mask.dim() != 2 or mask.shape[1] < columns:
        raise UsageError(
            f"An attention mask of shape {tuple(mask.shape)} does not fit {columns} new tokens.",
            "Pass the 2D mask [batch, tokens] that the tokenizer returns, or none.",
        )
    newest = mask[:, -columns:].bool()
    if bool(newest.all()):
        return None
    if columns == 1:
        raise UsageError(
            "A decode step has rows without a token (attention mask 0).", "Feed every row a token in each step."
        )
    if bool((newest[:, :-1] & ~newest[:, 1:]).any()):
        raise UsageError("Padding on the right is not supported.", "Set tokenizer.padding_side = 'left'.")
    return newest.sum(1).tolist()


class MethodLayer(CacheLayerMixin):  # type: ignore[misc]
    """One full-attention layer under one method."""

    is_sliding = False
    is_croppable = False
    supports_early_init = False

    def __init__(
        self, index: int, method: Method, settings: Settings, rotate: Rotate | None = None, *, layers: int = 1
    ) -> None:
        super().__init__()
        self.index, self.layers, self.method, self.settings, self.rotate = index, layers, method, settings, rotate
        self.store: Layer | None = None
        self.query_heads: int | None = None
        self.columns = 0
        """Columns of the batch seen so far, padding included: what transformers takes for the length."""
        self._pending: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the pages, once the shapes are known."""
        if key_states.shape != value_states.shape:
            raise PrerequisiteError(
                f"Layer {self.index} has keys {tuple(key_states.shape)} and values {tuple(value_states.shape)}: "
                "pages hold keys and values of one head size.",
                "Use a model without latent (MLA) attention.",
            )
        rows, kv_heads, _, head_dim = key_states.shape
        shape = CacheShape(
            self.query_heads or kv_heads,
            kv_heads,
            head_dim,
            self.settings.page_size,
            key_states.element_size(),
            index=self.index,
            layers=self.layers,
        )
        self.store = make_layer(
            self.method,
            self.settings.ops,
            shape,
            rows=rows,
            dtype=key_states.dtype,
            device=key_states.device,
            capacity=self.settings.capacity,
            rotate=self.rotate,
            bounds=self.settings.bounds,
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[KVHandle, KVHandle]:
        """Take the new entries ``[B, Hk, n, D]``; they are stored when attention brings the mask."""
        self._pending = key_states, value_states
        handle = KVHandle(self)
        return handle, handle

    def attend(self, query: Tensor, mask: Tensor | None, scoring: Scoring) -> Tensor:
        """Store the pending entries and attend: ``[B, Hq, n, D]`` -> ``[B, Hq, n, D]``."""
        if self._pending is None:
            raise UsageError("Attention was called twice for one update of the cache.", "Report this model.")
        (keys, values), self._pending = self._pending, None
        if self.store is None:
            self.query_heads = query.shape[1]
            self.lazy_initialization(keys, values)
        store = self.store
        assert store is not None
        rows, _, columns, _ = query.shape
        if rows != store.rows:
            raise UsageError(
                f"This cache holds {store.rows} rows, but the batch has {rows}.", "Build a new cache for a new batch."
            )
        valid = self.settings.valid(mask, columns)
        opening = not any(store.seen)
        store.append(keys, values, valid)
        self.columns += columns
        in_prompt = opening or self.settings.more or self.settings.resumed
        if columns == 1 and not in_prompt:
            out = self.settings.decode(store, query[:, :, 0].contiguous(), scoring)
            return out[:, :, None]
        collect, resumed, more = self.settings.collect, self.settings.resumed, self.settings.more
        out = attention.prefill(store, query, keys, values, scoring, valid, collect, resumed=resumed, more=more)
        if more:
            return out
        store.end_prefill()
        if not collect or not store.whole:
            store.forget_prompt()
        return out

    def fork(self, method: Method, settings: Settings, rotate: Rotate | None) -> MethodLayer:
        """A layer of its own that starts from this one's entries, with what ``method`` drops of a prefill dropped."""
        twin = MethodLayer(self.index, method, settings, rotate, layers=self.layers)
        twin.columns = self.columns
        if self.store is not None:
            twin.store = fork_layer(self.store, method, page_size=settings.page_size)
            for part in twin.store.parts:
                part.rotate = rotate
            twin.store.end_prefill()
            twin.is_initialized = True
        return twin

    def get_seq_length(self) -> int:
        """Columns seen, not entries kept: positions and masks of transformers follow from it."""
        return self.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask: all columns."""
        return self.columns + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        if self.store is not None:
            self.store.release()
        self.store, self._pending, self.columns, self.is_initialized = None, None, 0, False

    def crop(self, tokens_to_remove: int) -> None:
        """Nothing can be taken back: what a method dropped is gone.

        Raises:
            UsageError: unless there is nothing to remove.
        """
        if tokens_to_remove != 0:
            raise UsageError(
                f"A questbench cache cannot be rolled back by {abs(tokens_to_remove)} tokens.",
                "Generate without an assistant model or prompt lookup.",
            )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes the old row ``beam_idx[i]`` (beam search)."""
        if self.store is not None:
            self.store.select_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        if self.store is not None:
            self.store.select_rows(torch.arange(self.store.rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices`` (numbers or a mask)."""
        if self.store is not None:
            self.store.select_rows(torch.arange(self.store.rows)[indices.to("cpu")])


class SparseCache(Cache):  # type: ignore[misc]
    """Full-attention layers under a method, sliding-window layers as transformers has them."""

    def __init__(self, layers: list[CacheLayerMixin], model: PreTrainedModel, settings: Settings) -> None:
        super().__init__(layers=layers)
        self.model, self.settings = model, settings

    def __repr__(self) -> str:
        return f"SparseCache({len(self.layers)} layers, page size {self.settings.page_size})"
