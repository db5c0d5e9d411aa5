"""THE forward path of attention: append, select, read, forget. kernel, e2e, accuracy and generate() all run it.

A decode step is ``layer.append(k, v)`` followed by :func:`decode`; a prompt is ``layer.append`` and :func:`prefill`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from questbench.cache import LayerCache
from questbench.errors import CellError
from questbench.kernels._ops import MassMode
from questbench.methods._base import Everything, Observes, Pages, Tokens, TopPages

PREFILL_CHUNK = 256
"""Most query rows per block where prefill attention is masked or written out: memory stays linear in the length."""
PREFILL_BLOCK = 1 << 25
"""Probabilities that are written out at once (128 MiB of them): longer texts get blocks of fewer rows."""


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


def decode(
    layer: LayerCache,
    q: Tensor,
    scoring: Scoring,
    observer: Observer | None = None,
    collect: frozenset[str] = frozenset(),
) -> Tensor:
    """Attention of one new query per row; its key and value are in the cache already.

    Args:
        q: ``[B, Hq, D]`` in storage dtype.
        collect: attention mass to keep up to date in ``layer.prefill_mass``; see :func:`prefill`. A step that does not
            read everything has no such mass: nothing is collected any more.

    Returns:
        ``[B, Hq, D]``.
    """
    method, ops = layer.method, layer.ops
    selection = method.select(q, layer, ops)
    visits = None
    if observer is not None:
        visits = torch.zeros((layer.rows, layer.kv_heads, layer.slots), dtype=torch.int32, device=q.device)
    own = torch.zeros((layer.rows, layer.kv_heads, layer.slots), device=q.device) if collect else None
    if isinstance(selection, TopPages):
        if layer.bounds is None:
            raise CellError(f"{method.name} needs page bounds, but this cache keeps none.")
        out = ops.attend_top(
            q,
            layer.paged,
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
        listed = selection if isinstance(selection, Pages | Tokens) else None
        everything = selection if isinstance(selection, Everything) else Everything()
        out = ops.attend(
            q,
            layer.paged,
            scoring.scale,
            pages=listed.pages if isinstance(listed, Pages) else None,
            tokens=listed.tokens if isinstance(listed, Tokens) else None,
            counts=listed.counts if listed else None,
            softcap=scoring.softcap,
            sinks=scoring.sinks,
            prefix_q=everything.prefix_q,
            prefix=everything.prefix,
            mass=layer.mass if own is None else own,
            mass_mode=_observed(method.observes) if own is None else "last",
            visits=visits,
        )
    if observer is not None and visits is not None:
        observer.step(layer, visits)
    if own is not None:
        _add_step(layer, own, collect if isinstance(selection, Everything) else frozenset())
    layer.steps += 1
    layer.forget()
    if not layer.reversible:
        layer.prefill_mass.clear()  # it is that of slots which others have taken
    return out


def _observed(observes: Observes) -> MassMode:
    return "none" if observes == "nothing" else observes


def _add_step(layer: LayerCache, own: Tensor, collect: frozenset[str]) -> None:
    """Add one query's mass ``[B, Hk, slots]`` to what the method and ``collect`` ask for."""
    if layer.mass is not None:
        mass = layer.mass[:, :, : own.shape[2]]
        mass.copy_(mass + own if layer.method.observes == "sum" else own)
    own = own[:, :, : max(layer.held)]
    if not collect:
        layer.prefill_mass.clear()
    if "last" in collect:
        layer.prefill_mass["last"] = own
    earlier = layer.prefill_mass.pop("sum", None)
    if "sum" in collect and earlier is not None and earlier.shape[2] >= own.shape[2] - 1:  # else steps were left out
        # Not in place: a fork may look at the same tensor.
        layer.prefill_mass["sum"] = own + F.pad(earlier, (0, own.shape[2] - earlier.shape[2]))


def prefill(
    layer: LayerCache,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scoring: Scoring,
    new: Sequence[int] | None = None,
    collect: frozenset[str] = frozenset(),
    resumed: bool = False,
) -> Tensor:
    """Dense causal attention of several queries per row; their keys and values are in the cache already.

    Queries behind a non-empty cache (a chat turn, a later part of a prompt) see everything that is resident. Nothing
    is dropped here: call ``layer.end_prefill()`` when the prompt is complete. A prompt in parts gives what it gives in
    one piece, the collected mass included.

    Args:
        q: ``[B, Hq, n, D]``; k, v: ``[B, Hk, n, D]``, as appended.
        new: valid entries per row, the last ones (left padding); all n by default.
        collect: attention mass to leave in ``layer.prefill_mass``: ``last`` and ``sum``, on top of the method's own.
        resumed: these queries go on with a prompt whose earlier ones have left their mass there.

    Returns:
        ``[B, Hq, n, D]``; zeros where a row has padding.
    """
    out = torch.zeros_like(q)
    everything = Everything()
    counts = [q.shape[2]] * layer.rows if new is None else list(new)
    earlier = max(held - count for held, count in zip(layer.held, counts, strict=True))
    if layer.held != counts:
        everything = layer.method.reread(q.flatten(1, 2), layer)
    prefix_q = None if everything.prefix_q is None else everything.prefix_q.unflatten(1, q.shape[1:3])
    own = layer.method.prefill_observes
    wanted = {
        mode for mode in collect | ({own} - {"nothing"}) if _make_mass(layer, mode, resumed, mode == own, earlier)
    }
    for row in range(layer.rows):
        count = counts[row]
        if count == 0:
            continue
        queries = q[row, :, -count:]
        if layer.held[row] == count:
            keys, values = k[row, :, -count:], v[row, :, -count:]
        else:
            keys, values = layer.gather(row)
        sunk = None if prefix_q is None else prefix_q[row, :, -count:]
        plain = scoring.softcap == 0.0 and scoring.sinks is None and sunk is None
        if plain:
            out[row, :, -count:] = _plain(queries, keys, values, scoring.scale)
        # The last row's mass needs no other row.
        first = 0 if "sum" in wanted or not plain else count - 1
        if wanted or not plain:
            turned = None if sunk is None else sunk[:, first:]
            blocks = _written_out(queries[:, first:], keys, values, scoring, not plain, turned, everything.prefix)
            for start, probabilities, part in blocks:
                if part is not None:
                    out[row, :, q.shape[2] - count + start :][:, : part.shape[1]] = part.to(q.dtype)
                _collect(layer, row, probabilities, wanted)
    return out


def _make_mass(layer: LayerCache, mode: str, resumed: bool, own: bool, entries: int) -> bool:
    """Room for one kind of mass of all resident entries; a running sum goes on where it was.

    Args:
        resumed: the prompt goes on.
        own: the layer's method asks for it, and keeps a running sum of earlier turns by itself.
        entries: what the longest row held before.

    Returns:
        Whether it can be collected. The sum over a text cannot if that of its earlier part is not there.
    """
    mass = torch.zeros((layer.rows, layer.kv_heads, max(layer.held)), device=layer.device)
    earlier = layer.prefill_mass.pop(mode, None)
    if mode == "sum" and (resumed or not own):
        if entries > 0 and (earlier is None or earlier.shape[2] < entries):
            return False
        if earlier is not None and entries > 0:
            mass[:, :, : earlier.shape[2]] = earlier
    layer.prefill_mass[mode] = mass
    return True


def _plain(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Causal attention by torch's fused kernel; the queries ``[Hq, m, D]`` are the newest of the n entries."""
    count, entries = queries.shape[1], keys.shape[1]
    if count == entries:
        return F.scaled_dot_product_attention(
            queries[None], keys[None], values[None], is_causal=count > 1, scale=scale, enable_gqa=True
        )[0]
    if _flash(queries, keys, values):
        # With a mask there would be no fused kernel for grouped heads on a GPU; flash attention needs none.
        mask: Any = causal_lower_right(count, entries)
        return F.scaled_dot_product_attention(
            queries[None], keys[None], values[None], attn_mask=mask, scale=scale, enable_gqa=True
        )[0]
    out = torch.empty_like(queries)
    place = torch.arange(entries, device=queries.device)
    for start in range(0, count, PREFILL_CHUNK):
        stop = min(start + PREFILL_CHUNK, count)
        high = entries - count + stop
        seen = place[:high] <= torch.arange(high - stop + start, high, device=queries.device)[:, None]
        out[:, start:stop] = F.scaled_dot_product_attention(
            queries[None, :, start:stop],
            keys[None, :, :high],
            values[None, :, :high],
            attn_mask=seen[None, None],
            scale=scale,
            enable_gqa=True,
        )[0]
    return out


def _flash(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether torch runs flash attention for these, whose causal diagonal ends in the lower right corner."""
    if not queries.is_cuda:
        return False
    cuda: Any = torch.backends.cuda
    asked = cuda.SDPAParams(queries[None], keys[None], values[None], None, 0.0, False, True)
    return bool(cuda.can_use_flash_attention(asked))


def _collect(layer: LayerCache, row: int, probabilities: Tensor, wanted: frozenset[str] | set[str]) -> None:
    """Add one block of probability rows ``[Hk, g, m, n]`` to the mass that is collected."""
    entries = probabilities.shape[3]
    if "sum" in wanted:
        layer.prefill_mass["sum"][row, :, :entries] += probabilities.sum((1, 2))
    if "last" in wanted:
        layer.prefill_mass["last"][row, :, :entries] = probabilities[:, :, -1].sum(1)


def _written_out(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scoring: Scoring,
    with_output: bool,
    prefix_q: Tensor | None = None,
    prefix: int = 0,
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Causal attention in blocks of query rows, in fp32.

    Yields:
        (first row, probabilities ``[Hk, g, m, entries up to the last row's]``, output ``[Hq, m, D]`` or ``None``).
    """
    heads, count, _ = queries.shape
    kv_heads, entries, _ = keys.shape
    wide_k, wide_v = keys.float(), values.float() if with_output else None
    grouped = queries.float().unflatten(0, (kv_heads, -1))
    turned = None if prefix_q is None else prefix_q.float().unflatten(0, (kv_heads, -1))
    place = torch.arange(entries, device=queries.device)
    rows = max(1, min(PREFILL_CHUNK, PREFILL_BLOCK // (heads * entries)))
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        high = entries - count + stop
        logits = _products(grouped[:, :, start:stop], wide_k[:, :high]) * scoring.scale
        if turned is not None:
            logits[..., :prefix] = _products(turned[:, :, start:stop], wide_k[:, :prefix]) * scoring.scale
        if scoring.softcap > 0:
            logits = scoring.softcap * torch.tanh(logits / scoring.softcap)
        own = torch.arange(high - stop + start, high, device=queries.device)
        logits.masked_fill_(place[:high] > own[:, None], -torch.inf)
        if scoring.sinks is not None:
            sink = scoring.sinks.float().view(kv_heads, -1, 1, 1).expand(-1, -1, stop - start, 1)
            probabilities = torch.softmax(torch.cat([logits, sink], dim=-1), dim=-1)[..., :high]
        else:
            probabilities = torch.softmax(logits, dim=-1)
        out = None
        if wide_v is not None:
            weighted = probabilities.flatten(1, 2) @ wide_v[:, :high]
            out = weighted.unflatten(1, (-1, stop - start)).flatten(0, 1)
        yield start, probabilities, out


def _products(queries: Tensor, keys: Tensor) -> Tensor:
    """``[Hk, g, m, D]`` and ``[Hk, n, D]`` -> ``[Hk, g, m, n]``: a group's queries share their head's keys."""
    products: Tensor = queries.flatten(1, 2) @ keys.transpose(1, 2)
    return products.view(*queries.shape[:3], keys.shape[1])
