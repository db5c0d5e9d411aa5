"""THE forward path of attention: append, select, read, forget. kernel, e2e, accuracy and generate() all run it.

A decode step is ``layer.append(k, v)`` followed by :func:`decode`; a prompt is ``layer.append`` and :func:`prefill`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from questbench.cache import LayerCache
from questbench.errors import CellError
from questbench.methods._base import Everything, Pages, TopPages

PREFILL_CHUNK = 256
"""Query rows per block where prefill attention is written out, so that memory stays linear in the length."""


@dataclass(frozen=True)
class Scoring:
    """What turns products into probabilities; the model decides it, the method does not."""

    scale: float
    softcap: float = 0.0
    sinks: Tensor | None = None
    """``[Hq]`` fp32 logits without a value (gpt-oss)."""


class Observer(Protocol):
    """Watches decode steps without changing them."""

    def step(self, layer: LayerCache, visits: Tensor) -> None:
        """Called after each read, before anything is forgotten.

        Args:
            layer: the cache that was read; ``layer.seen`` is the text length, ``layer.held`` what was resident.
            visits: ``[B, Hk, slots]`` int32, how many query heads of each KV head read each slot.
        """
        ...


def decode(layer: LayerCache, q: Tensor, scoring: Scoring, observer: Observer | None = None) -> Tensor:
    """Attention of one new query per row; its key and value are in the cache already.

    Args:
        q: ``[B, Hq, D]`` in storage dtype.

    Returns:
        ``[B, Hq, D]``.
    """
    method, ops = layer.method, layer.ops
    selection = method.select(q, layer, ops)
    visits = None
    if observer is not None:
        visits = torch.zeros((layer.rows, layer.kv_heads, layer.slots), dtype=torch.int32, device=q.device)
    if isinstance(selection, TopPages):
        if layer.bounds is None:
            raise CellError(f"{method.name} needs page bounds, but this cache keeps none.")
        out = ops.attend_top(
            q,
            layer.k_pages,
            layer.v_pages,
            layer.bounds,
            layer.page_table,
            layer.lengths,
            scoring.scale,
            count=selection.count,
            width=selection.width,
            force_newest=selection.force_newest,
            merge=selection.merge,
            softcap=scoring.softcap,
            sinks=scoring.sinks,
            visits=visits,
        )
    else:
        listed = selection if isinstance(selection, Pages) else None
        everything = selection if isinstance(selection, Everything) else Everything()
        out = ops.attend(
            q,
            layer.k_pages,
            layer.v_pages,
            layer.page_table,
            layer.lengths,
            scoring.scale,
            pages=listed.pages if listed else None,
            counts=listed.counts if listed else None,
            softcap=scoring.softcap,
            sinks=scoring.sinks,
            prefix_q=everything.prefix_q,
            prefix=everything.prefix,
            mass=layer.mass,
            mass_mode="none" if method.observes == "nothing" else method.observes,
            visits=visits,
        )
    if observer is not None and visits is not None:
        observer.step(layer, visits)
    layer.steps += 1
    layer.forget()
    return out


def prefill(
    layer: LayerCache,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scoring: Scoring,
    new: Sequence[int] | None = None,
    collect: frozenset[str] = frozenset(),
) -> Tensor:
    """Dense causal attention of several queries per row; their keys and values are in the cache already.

    Queries behind a non-empty cache (a chat turn) see everything that is resident. Nothing is dropped here: call
    ``layer.end_prefill()`` when the prompt is complete.

    Args:
        q: ``[B, Hq, n, D]``; k, v: ``[B, Hk, n, D]``, as appended.
        new: valid entries per row, the last ones (left padding); all n by default.
        collect: attention mass to leave in ``layer.prefill_mass``: ``last`` and ``sum``, on top of the method's own.

    Returns:
        ``[B, Hq, n, D]``; zeros where a row has padding.
    """
    out = torch.zeros_like(q)
    everything = Everything()
    if layer.held != ([q.shape[2]] * layer.rows if new is None else list(new)):
        everything = layer.method.reread(q.flatten(1, 2), layer)
    prefix_q = None if everything.prefix_q is None else everything.prefix_q.unflatten(1, q.shape[1:3])
    wanted = collect | ({layer.method.prefill_observes} - {"nothing"})
    longest = max(layer.held)
    for mode in wanted:
        layer.prefill_mass[mode] = torch.zeros((layer.rows, layer.kv_heads, longest), device=q.device)
    for row in range(layer.rows):
        count = q.shape[2] if new is None else new[row]
        if count == 0:
            continue
        queries = q[row, :, -count:]
        if layer.held[row] == count:
            keys, values = k[row, :, -count:], v[row, :, -count:]
        else:
            keys, values = layer.gather(row)
        plain = scoring.softcap == 0.0 and scoring.sinks is None and keys.shape[1] == count
        if plain:
            attended = F.scaled_dot_product_attention(
                queries[None], keys[None], values[None], is_causal=count > 1, scale=scoring.scale, enable_gqa=True
            )[0]
        if wanted or not plain:
            sunk = None if prefix_q is None else prefix_q[row, :, -count:]
            written_out = _written_out(queries, keys, values, scoring, not plain, sunk, everything.prefix)
            for start, probabilities, part in written_out:
                if part is not None:
                    out[row, :, q.shape[2] - count + start :][:, : part.shape[1]] = part.to(q.dtype)
                _collect(layer, row, probabilities, wanted)
        if plain:
            out[row, :, -count:] = attended
    return out


def _collect(layer: LayerCache, row: int, probabilities: Tensor, wanted: frozenset[str] | set[str]) -> None:
    """Add one block of probability rows ``[Hq, m, n]`` to the mass that is collected."""
    entries = probabilities.shape[2]
    grouped = probabilities.unflatten(0, (layer.kv_heads, -1))
    if "sum" in wanted:
        layer.prefill_mass["sum"][row, :, :entries] += grouped.sum((1, 2))
    if "last" in wanted:
        layer.prefill_mass["last"][row, :, :entries] = grouped[:, :, -1].sum(1)


def _written_out(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scoring: Scoring,
    with_output: bool,
    prefix_q: Tensor | None = None,
    prefix: int = 0,
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Causal attention in blocks of query rows, in fp32: yields (first row, probabilities, output or ``None``)."""
    count, entries = queries.shape[1], keys.shape[1]
    group = queries.shape[0] // keys.shape[0]
    wide_k = keys.float().repeat_interleave(group, dim=0)
    wide_v = values.float().repeat_interleave(group, dim=0) if with_output else None
    place = torch.arange(entries, device=queries.device)
    for start in range(0, count, PREFILL_CHUNK):
        block = queries[:, start : start + PREFILL_CHUNK].float()
        logits = block @ wide_k.transpose(1, 2) * scoring.scale
        if prefix_q is not None:
            turned = prefix_q[:, start : start + PREFILL_CHUNK].float()
            logits[:, :, :prefix] = turned @ wide_k[:, :prefix].transpose(1, 2) * scoring.scale
        if scoring.softcap > 0:
            logits = scoring.softcap * torch.tanh(logits / scoring.softcap)
        own = torch.arange(start, start + block.shape[1], device=queries.device) + entries - count
        logits.masked_fill_(place > own[:, None], -torch.inf)
        if scoring.sinks is not None:
            sink = scoring.sinks.float()[:, None, None].expand(-1, block.shape[1], 1)
            probabilities = torch.softmax(torch.cat([logits, sink], dim=-1), dim=-1)[..., :entries]
        else:
            probabilities = torch.softmax(logits, dim=-1)
        yield start, probabilities, None if wide_v is None else probabilities @ wide_v
