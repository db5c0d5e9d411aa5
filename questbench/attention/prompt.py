"""A prompt, or a part of one: causal attention, dense unless the method has its own, and the mass it is judged by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from questbench.attention import flash
from questbench.attention.causal import plain, written_out
from questbench.attention.scoring import Scoring
from questbench.cache import Layer, LayerCache
from questbench.cache.tail import Tail
from questbench.methods._base import Everything, PromptMass, defines


def prefill(
    layer: Layer,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scoring: Scoring,
    new: Sequence[int] | None = None,
    collect: frozenset[PromptMass] = frozenset(),
    *,
    resumed: bool = False,
    more: bool = False,
) -> Tensor:
    """Causal attention of several queries per row; their keys and values are in the cache already.

    Queries behind a non-empty cache (a chat turn, a later part of a prompt) see everything that is resident. Nothing
    is dropped here: call ``layer.end_prefill()`` when the prompt is complete. A prompt in parts gives what it gives in
    one piece, the collected mass included.

    Args:
        q: ``[B, Hq, n, D]``; k, v: ``[B, Hk, n, D]``, as appended.
        new: valid entries per row, the last ones (left padding); all n by default.
        collect: attention mass to leave in ``layer.prefill_mass``, on top of the method's own.
        resumed: these queries go on with a prompt whose earlier ones have left their mass there.
        more: the prompt goes on.

    Returns:
        ``[B, Hq, n, D]``; zeros where a row has padding.
    """
    counts = [q.shape[2]] * layer.rows if new is None else list(new)
    shares = zip(layer.parts, layer.split(q), layer.split(k), layer.split(v), scoring.split(layer), strict=True)
    return layer.join([_part(*share, counts, collect, resumed, more) for share in shares])


def _part(
    layer: LayerCache,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scoring: Scoring,
    counts: list[int],
    collect: frozenset[PromptMass],
    resumed: bool,
    more: bool,
) -> Tensor:
    """The KV heads that one cache holds."""
    out = torch.zeros_like(q)
    everything = Everything() if layer.held == counts else _reread(layer, q)
    prefix_q = everything.prefix_q
    own = layer.method.prompt_mass
    wanted = (collect | {own}) - {0}
    earlier = max(held - count for held, count in zip(layer.held, counts, strict=True))
    sums = "sum" in wanted and _make_sum(layer, resumed or own != "sum", earlier)
    reads = defines(layer.method, "read_prompt")
    fused = scoring.plain and prefix_q is None
    written = not reads and not fused
    for row, count in enumerate(counts):
        if count == 0:
            continue
        queries = q[row, :, -count:]
        if layer.held[row] == count:
            keys, values = k[row, :, -count:], v[row, :, -count:]
        else:
            keys, values = layer.gather(row)
        lse = None
        if fused and (sums or not reads):
            out[row, :, -count:], lse = plain(queries, keys, values, scoring.scale)
        if reads:
            out[row, :, -count:] = layer.method.read_prompt(queries, keys, values, layer, scoring)
        if sums and lse is not None:
            mass = layer.prefill_mass["sum"][row]
            mass[:, : keys.shape[1]] += flash.column_sums(queries, keys, lse, scoring.scale)
        elif sums or written:
            sunk = None if prefix_q is None else prefix_q[row, :, -count:]
            for start, probabilities, part in written_out(
                queries, keys, values if written else None, scoring, sunk, everything.prefix
            ):
                if part is not None:
                    out[row, :, q.shape[2] - count + start :][:, : part.shape[1]] = part.to(q.dtype)
                if sums:
                    layer.prefill_mass["sum"][row, :, : probabilities.shape[3]] += probabilities.sum((1, 2))
    windows = [mode for mode in wanted if isinstance(mode, int)]
    if windows and not (resumed and layer.tail is None):  # else earlier queries were left out
        layer.tail = Tail.of(layer.tail if resumed else None, q, counts, max(windows))
        if not more:
            collect_windows(layer, scoring, windows)
    return out


def collect_windows(layer: LayerCache, scoring: Scoring, windows: Iterable[int]) -> None:
    """Leave the mass of the last n queries of the prompt, for each n, in ``layer.prefill_mass``."""
    assert layer.tail is not None
    tail = layer.tail.q
    everything = Everything() if layer.held == list(layer.tail.valid) else _reread(layer, tail)
    prefix_q = everything.prefix_q
    for last in windows:
        layer.prefill_mass[last] = torch.zeros((layer.rows, layer.kv_heads, max(layer.held)), device=layer.device)
    for row, valid in enumerate(layer.tail.valid):
        if valid == 0:
            continue
        keys = layer.keys(row)
        sunk = None if prefix_q is None else prefix_q[row, :, -valid:]
        for last in windows:
            mine = layer.prefill_mass[last][row]
            queries, turned = tail[row, :, -min(last, valid) :], None if sunk is None else sunk[:, -last:]
            for _, probabilities, _ in written_out(queries, keys, None, scoring, turned, everything.prefix):
                mine[:, : probabilities.shape[3]] += probabilities.sum((1, 2))


def _reread(layer: LayerCache, q: Tensor) -> Everything:
    """How queries ``[B, Hq, n, D]`` behind a filled cache see it, ``prefix_q`` in the same shape."""
    found = layer.method.reread(q.flatten(1, 2), layer)
    turned = None if found.prefix_q is None else found.prefix_q.unflatten(1, q.shape[1:3])
    return Everything(turned, found.prefix)


def _make_sum(layer: LayerCache, goes_on: bool, entries: int) -> bool:
    """Room for the summed mass of all resident entries; it goes on where it was.

    Args:
        goes_on: the sum of earlier queries belongs to it. A method keeps that of earlier turns by itself.
        entries: what the longest row held before.

    Returns:
        Whether it can be collected: not if that of the text's earlier part is not there.
    """
    mass = torch.zeros((layer.rows, layer.kv_heads, max(layer.held)), device=layer.device)
    earlier = layer.prefill_mass.pop("sum", None)
    if goes_on and entries > 0:
        if earlier is None or earlier.shape[2] < entries:
            return False
        mass[:, :, : earlier.shape[2]] = earlier
    layer.prefill_mass["sum"] = mass
    return True
