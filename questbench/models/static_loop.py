"""A decode loop without Python in the way: static buffers, one flat plan per model, attention by ``attention.decode``.

    cache = build_cache(model, Quest(budget=1024), capacity=prompt + new)
    logits = prefill(model, ids, cache)
    loop = StaticLoop(model, cache)
    texts = loop.generate(logits.argmax(-1), 256, stop={eos})

The step is the one of ``model(...)`` with the attention ``questbench``: the same matrices, the same cache, the same
call of ``attention.decode``. A model without a plan, or one whose plan computes something else, runs through its own
forward; ``path`` and ``reason`` say so.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from questbench.errors import UsageError
from questbench.kernels._ops import Ops
from questbench.models import _plan, hf
from questbench.models._forward import check_finite, check_tokens
from questbench.models._fused import Fused, fuse
from questbench.models._mark import Mark, go_back, held_by_part, tokens_seen
from questbench.models._wider import wider_logits
from questbench.models.hf_attention import dense
from questbench.models.hf_cache import MethodLayer, SparseCache
from questbench.models.window import WindowLayer, hold_windows

TRIED = (3, 5)
"""Tokens of the prompt, and decode steps, that a plan is compared with its model on."""

PLAIN_LIMIT = {torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""Largest difference to the model's own forward where that cannot be run in a wider dtype; 1e-5 in wide dtypes."""

TIPPED = 1e-4
"""Rounding can tip sharp attention in one step of a plan and not of its model: how far off that step may be."""

_verdicts: weakref.WeakKeyDictionary[PreTrainedModel, str | None] = weakref.WeakKeyDictionary()
_fuses: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()
"""Whether the plan of a model is right in compiled steps, not only part by part."""


class StaticLoop:
    """Decode steps of a batch over a cache that holds its prompts.

    Rows may differ in length (left padding in the prefill). Rows that are done go on in step with the others and what
    they produce is cut off; the cache grows by one entry per row and step.

    Args:
        model: the model that ``cache`` was built for.
        cache: holds the prompts. With ``capacity`` at least prompt + new entries it never allocates again.
        mask: ``[B, n]`` of the prompts, needed where a model has sliding-window layers and rows are padded.
        plan: ``auto``; ``model`` for the model's own forward.

    Raises:
        UsageError: the cache is empty.
    """

    def __init__(
        self, model: PreTrainedModel, cache: SparseCache, *, mask: Tensor | None = None, plan: str = "auto"
    ) -> None:
        self.model, self.cache = model, cache
        self.layers = [layer for layer in cache.layers if isinstance(layer, MethodLayer)]
        device = next(model.parameters()).device
        seen = tokens_seen(cache, mask)
        if not seen or not all(seen):
            raise UsageError("A decode loop needs a cache that holds a prompt.", "Call prefill() first.")
        self.rows = len(seen)
        self.tokens = torch.zeros(self.rows, dtype=torch.long, device=device)
        """``[B]``: what the next step reads, and what :meth:`step` wrote last."""
        self.places = torch.tensor(seen, dtype=torch.long, device=device)[:, None]
        """``[B, 1]``: text position of the next token of each row."""
        slides = len(self.layers) < len(cache.layers)  # in pages every row has a length of its own
        self._mask = mask.bool() if slides and mask is not None and not bool(mask.all()) else None
        self.path, self.reason = "model", None
        self.plan: _plan.Plan | None = None
        self._fused: Fused | None = None
        if plan == "auto":
            self.reason = disagreement(model, cache.settings.ops)
            if self.reason is None:
                self._follow(_plan.lay_out(model, self.rows), fused=_fuses[model])
                self.path = "flat"

    def _follow(self, plan: _plan.Plan, *, fused: bool) -> None:
        """Make steps by this plan, compiled where it can be, with windows in rings of pages on a CPU."""
        self.plan, self._fused = plan, fuse(plan, self.rows) if fused else None
        if self.tokens.device.type == "cpu":
            hold_windows(self.cache)

    @property
    def linear_path(self) -> str:
        """What runs the linear layers: ``compiled``, ``torch`` or ``mixed``."""
        paths = {"torch"} if self.plan is None else {p.path for p in self.plan.projections}
        return paths.pop() if len(paths) == 1 else "mixed"

    @torch.no_grad()
    def feed(self, tokens: Tensor | Sequence[int]) -> Tensor:
        """One step with given tokens ``[B]``: the logits after them, ``[B, vocabulary]``, good until the next step.

        Raises:
            NotFiniteError: the logits hold NaN or infinity.
            PrerequisiteError: a token is outside the model's vocabulary.
        """
        given = torch.as_tensor(tokens)
        check_tokens(self.model, given)
        self.tokens.copy_(given)
        logits = self._forward()
        self._advance()
        return check_finite(logits, self.model.dtype, "the logits of a decode step")

    @torch.no_grad()
    def step(self) -> Tensor:
        """One greedy step: reads ``tokens``, writes the next ones there and returns them."""
        self._choose()
        self._advance()
        return self.tokens

    def _choose(self) -> None:
        logits = self._forward()
        if logits.device.type == "cpu":
            logits = logits.float()  # which finds the largest of 16-bit logits in a third of the time
        torch.argmax(logits, dim=-1, out=self.tokens)

    def generate(self, first: Tensor | Sequence[int], count: int, stop: Collection[int] = ()) -> list[list[int]]:
        """Up to ``count`` tokens per row, the given first ones included; a row ends before a token of ``stop``."""
        self.tokens.copy_(torch.as_tensor(first))
        made = torch.empty((count, self.rows), dtype=torch.long, device=self.tokens.device)
        ends = torch.tensor(sorted(stop), dtype=torch.long, device=self.tokens.device)
        done = torch.zeros(self.rows, dtype=torch.bool, device=self.tokens.device)
        used = 0
        for number in range(count):
            if number:
                self.step()
            made[number] = self.tokens
            used = number + 1
            if len(ends):
                done |= torch.isin(self.tokens, ends)
                if self._look(number) and bool(done.all()):
                    break
        return [_cut(row, stop) for row in made[:used].T.tolist()]

    def mark(self) -> Mark:
        """Where the loop stands, for :meth:`rewind`."""
        seen = self.places[:, 0].tolist()
        columns = [(layer.get_seq_length(), held_by_part(layer, seen)) for layer in self.cache.layers]
        return Mark(self.tokens.clone(), self.places.clone(), columns)

    def rewind(self, mark: Mark) -> bool:
        """Go back to ``mark``: layers that have dropped nothing forget what they have seen since.

        Returns:
            Whether all is as it was. What a layer has dropped is gone: it stays as it is, which has the same size and
            so the same speed. Attention mass that was summed since is kept.
        """
        whole = True
        for layer, (columns, held) in zip(self.cache.layers, mark.columns, strict=True):
            whole &= go_back(layer, columns, held)
        if self._mask is not None:
            self._mask = self._mask[:, : max((columns for columns, _ in mark.columns), default=0)]
        self.tokens.copy_(mark.tokens)
        self.places.copy_(mark.places)
        return whole

    def _look(self, number: int) -> bool:
        """Whether to ask after this step if all rows are done."""
        del number
        return True

    def _forward(self) -> Tensor:
        logits = self._by_model() if self.plan is None else self._by_plan(self.plan)
        self.places += 1
        return logits

    def _advance(self) -> None:
        """What the host notes of a step that the flat plan made; the model's own forward does it by itself."""
        if self.plan is not None:
            for layer in self.layers:
                layer.columns += 1

    def _by_model(self) -> Tensor:
        inputs: dict[str, Any] = {"position_ids": self.places.clone()}
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(self.rows, 1)], dim=1)
            inputs["attention_mask"] = self._mask
        return hf.forward(self.model, self.tokens[:, None], self.cache, **inputs)

    def _by_plan(self, plan: _plan.Plan) -> Tensor:
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(self.rows, 1)], dim=1)
        if self._fused is not None and self._fused.plan is plan:  # else parts of the plan were exchanged, to time them
            logits = self._fused.logits(self.tokens, self.places, self._attend_layer)
        else:
            logits = self._by_parts(plan)
        if plan.softcap > 0:
            logits = plan.softcap * torch.tanh(logits / plan.softcap)
        return logits

    def _by_parts(self, plan: _plan.Plan) -> Tensor:
        hidden: Tensor = plan.embed(self.tokens)
        angles = plan.rotary(hidden, self.places)
        for block, layer in zip(plan.blocks, self.cache.layers, strict=True):
            q, k, v = self._heads(block, block.qkv(block.norm(hidden)), *angles[block.kind])
            out = block.out(self._attend(block, layer, q, k, v))
            hidden = hidden + (out if block.out_norm is None else block.out_norm(out))
            both = block.gate_up(block.mlp_norm(hidden))
            gate, up = both.chunk(2, dim=-1)
            down = block.down(block.activation(gate).mul_(up))
            hidden = hidden + (down if block.down_norm is None else block.down_norm(down))
        return plan.head(plan.norm(hidden))

    @staticmethod
    def _heads(block: _plan.Block, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, Hq, D]``, keys and values ``[B, Hk, 1, D]``, queries and keys turned to their position."""
        parts = qkv.view(qkv.shape[0], -1, block.head_dim)
        both, v = parts[:, : -block.kv_heads], parts[:, -block.kv_heads :]
        if block.q_norm is not None and block.k_norm is not None:
            both = torch.cat([block.q_norm(both[:, : block.heads]), block.k_norm(both[:, block.heads :])], dim=1)
        both = block.turn(both, cos, sin)
        return both[:, : block.heads].contiguous(), both[:, block.heads :, None], v[:, :, None]

    def _attend_layer(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert self.plan is not None
        return self._attend(self.plan.blocks[index], self.cache.layers[index], q, k, v)

    def _attend(self, block: _plan.Block, layer: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[B, Hq * D]``."""
        if isinstance(layer, MethodLayer):
            store = layer.store
            assert store is not None
            store.append(k, v)
            return self.cache.settings.decode(store, q, block.scoring).flatten(1)
        if isinstance(layer, WindowLayer) and block.window in (None, layer.sliding_window):
            return layer.step(q, k, v, block.scoring, self.places).flatten(1)
        keys, values = layer.update(k, v)
        mask = None if self._mask is None else self._mask[:, -keys.shape[2] :]
        return dense(q[:, :, None], keys, values, mask, block.window, block.scoring).flatten(1)


def _cut(tokens: list[int], stop: Collection[int]) -> list[int]:
    return next((tokens[:place] for place, token in enumerate(tokens) if token in stop), tokens)


def disagreement(model: PreTrainedModel, ops: Ops) -> str | None:
    """Why the flat plan of a model must not be used; ``None`` if it gives what the model's own forward gives.

    Both run a few tokens of a short text over dense caches, and both are held against the model's forward in a wider
    dtype: the plan may be off by twice what the model itself is off by. Asked once per model; ask anew by
    :func:`forget` after a change of its weights' kind.
    """
    if model not in _verdicts:
        _verdicts[model] = _compare(model, ops)
    return _verdicts[model]


def forget(model: PreTrainedModel) -> None:
    """The model has changed (its weights were quantised): compare again when next asked."""
    _verdicts.pop(model, None)


def _compare(model: PreTrainedModel, ops: Ops) -> str | None:
    try:
        plan = _plan.lay_out(model, 1)
    except (_plan.UnknownPart, AttributeError) as error:
        return f"no flat plan for {type(model).__name__}: {error}"
    _fuses[model] = fuse(plan, 1) is not None and _differs(model, ops, plan, fused=True) is None
    return None if _fuses[model] else _differs(model, ops, plan, fused=False)


@torch.no_grad()
def _differs(model: PreTrainedModel, ops: Ops, plan: _plan.Plan, *, fused: bool) -> str | None:
    from questbench.methods.dense import Dense

    vocabulary = model.get_input_embeddings().num_embeddings
    prompt, steps = TRIED
    ids = torch.linspace(1, vocabulary - 1, prompt + steps).long()[None]
    caches = [hf.build_cache(model, Dense(), dense_layers=0, ops=ops) for _ in range(2)]
    for cache in caches:
        hf.forward(model, ids[:, :prompt], cache)
    loop = StaticLoop(model, caches[0], plan="model")
    loop._follow(plan, fused=fused)
    planned, own = [], []
    for place in range(prompt, prompt + steps):
        try:
            planned.append(loop.feed(ids[:, place]).double())
        except (RuntimeError, TypeError, ValueError) as error:
            return f"the flat plan for {type(model).__name__} does not run: {error}"
        own.append(hf.forward(model, ids[:, place : place + 1], caches[1]).double())
    for cache in caches:
        hf.release(cache)
    difference, limit = _off(planned, own), PLAIN_LIMIT.get(model.dtype, 1e-5)
    wider = wider_logits(model, ids.to(planned[0].device))
    if wider is not None:
        reference = list(wider[:, prompt:].double().unbind(1))
        difference, limit = _off(planned, reference), 2 * _off(own, reference) + 8 * torch.finfo(model.dtype).eps
        if _tipped(planned, reference, limit):
            return None
    if not difference <= limit:
        return (
            f"the flat plan for {type(model).__name__} differs from its forward: it is off by {difference:.1e}, and "
            f"{limit:.1e} is what rounding explains"
        )
    return None


def _tipped(got: list[Tensor], want: list[Tensor], limit: float) -> bool:
    """Whether one step alone is over the limit, and by no more than rounding can do; 16 bits never come to this."""
    steps = [_off([a], [b]) for a, b in zip(got, want, strict=True)]
    worst = steps.index(max(steps))
    rest = [[x for place, x in enumerate(side) if place != worst] for side in (got, want)]
    return steps[worst] <= TIPPED and _off(*rest) <= limit


def _off(got: list[Tensor], want: list[Tensor]) -> float:
    """How far logits of some steps are from others, relative to their size."""
    wanted = torch.stack(want)
    return float((torch.stack(got) - wanted).norm() / wanted.norm().clamp(min=1e-30))
