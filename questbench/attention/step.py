"""One decode step: select -> read -> merge -> drop, as the method of each cache says."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from questbench.attention.prompt import collect_windows
from questbench.attention.scoring import Observer, Scoring
from questbench.cache import Layer, LayerCache
from questbench.cache.tail import Tail
from questbench.errors import CellError
from questbench.methods._base import Everything, Pages, PromptMass, Tokens, TopMass, TopPages, defines


def decode(
    layer: Layer,
    q: Tensor,
    scoring: Scoring,
    observer: Observer | None = None,
    collect: frozenset[PromptMass] = frozenset(),
) -> Tensor:
    """Attention of one new query per row; its key and value are in the cache already.

    Args:
        q: ``[B, Hq, D]`` in storage dtype.
        collect: attention mass to keep up to date in ``layer.prefill_mass``; see :func:`prefill`. A step that does not
            read everything has no such mass: nothing is collected any more.

    Returns:
        ``[B, Hq, D]``.
    """
    if isinstance(layer, LayerCache) and observer is None:  # what is below, for one part: microseconds count here
        out = _read(layer, q.contiguous(), scoring, None, collect)
        _end(layer)
        return out
    shares = zip(layer.parts, layer.split(q), scoring.split(layer), strict=True)
    visits = []
    if observer is not None:
        visits = [
            torch.zeros((part.rows, part.kv_heads, part.slots), dtype=torch.int32, device=q.device)
            for part in layer.parts
        ]
    outs = [
        _read(part, own.contiguous(), scores, visits[number] if visits else None, collect)
        for number, (part, own, scores) in enumerate(shares)
    ]
    if observer is not None:
        observer.step(layer, layer.join(visits))
    for part in layer.parts:
        _end(part)
    return layer.join(outs)


def _end(part: LayerCache) -> None:
    part.steps += 1
    part.end_step()
    if not part.whole:
        part.forget_prompt()  # its mass is that of slots which others have taken


def _read(
    layer: LayerCache, q: Tensor, scoring: Scoring, visits: Tensor | None, collect: frozenset[PromptMass]
) -> Tensor:
    """What the method selects, and the mass that anyone collects."""
    method, ops = layer.method, layer.ops
    selection = method.select(q, layer, ops)
    if isinstance(selection, TopMass):
        selection = _most_mass(layer, q, scoring, selection)
    lse = None
    if defines(method, "merge"):
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        if isinstance(selection, TopPages):  # the fused op has no such output
            selection = Pages(*_best_pages(layer, q, scoring, selection))
    mass = None if method.step_mass == "none" else layer.mass
    if collect:
        mass = torch.zeros((layer.rows, layer.kv_heads, layer.slots), device=q.device)
    if isinstance(selection, TopPages):
        _need_bounds(layer)
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
        listed = selection if isinstance(selection, (Pages, Tokens)) else None
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
            mass=mass,
            mass_mode="last" if collect else method.step_mass,
            visits=visits,
            lse=lse,
        )
    if mass is not None and collect:
        _add_step(layer, q, scoring, mass, collect if isinstance(selection, Everything) else frozenset())
    return out if lse is None else method.merge(q, out, lse, layer)


def _best_pages(layer: LayerCache, q: Tensor, scoring: Scoring, best: TopPages) -> tuple[Tensor, Tensor]:
    """Pages and counts, as ``Ops.select`` returns them."""
    ops, paged = layer.ops, layer.paged
    pages = paged.table.shape[1]
    if isinstance(best.count, int) and best.count >= pages:  # every page is taken, whatever its score
        scores = torch.zeros((*q.shape[:2], pages), device=q.device)
    else:
        _need_bounds(layer)
        scores = ops.score(q, paged, skip_newest=best.force_newest)
    return ops.select(
        scores,
        paged.lengths,
        paged.page_size,
        best.count,
        width=best.width,
        force_newest=best.force_newest,
        merge=best.merge,
        group=q.shape[1] // layer.kv_heads,
        scale=scoring.scale,
    )


def _most_mass(layer: LayerCache, q: Tensor, scoring: Scoring, wanted: TopMass) -> Tokens:
    """The entries of the best pages that hold most of the mass."""
    ops, paged, size = layer.ops, layer.paged, layer.page_size
    pages, counts = _best_pages(layer, q, scoring, wanted.pages)
    codes = wanted.codes, wanted.ranges
    logits = ops.estimate(q, *codes, paged.lengths, size, pages, counts, scoring.scale, scoring.softcap)
    return Tokens(*ops.prune(logits, paged.lengths, size, pages, counts, wanted.p))


def _need_bounds(layer: LayerCache) -> None:
    if layer.bounds is None:
        raise CellError(f"{layer.method.name} needs page bounds, but this cache keeps none.")


def _add_step(layer: LayerCache, q: Tensor, scoring: Scoring, own: Tensor, collect: frozenset[PromptMass]) -> None:
    """Add one query's mass ``[B, Hk, slots]`` to what the method and ``collect`` ask for."""
    if layer.mass is not None and layer.method.step_mass != "none":
        mass = layer.mass[:, :, : own.shape[2]]
        mass.copy_(mass + own if layer.method.step_mass == "sum" else own)
    if not collect:
        layer.forget_prompt()
    own = own[:, :, : max(layer.held)]
    earlier = layer.prefill_mass.pop("sum", None)
    if "sum" in collect and earlier is not None and earlier.shape[2] >= own.shape[2] - 1:  # else steps were left out
        # Not in place: a fork may look at the same tensor.
        layer.prefill_mass["sum"] = own + F.pad(earlier, (0, own.shape[2] - earlier.shape[2]))
    windows = [mode for mode in collect if isinstance(mode, int)]
    if windows and layer.tail is not None:  # else earlier queries were left out
        layer.tail = Tail.of(layer.tail, q[:, :, None], [1] * layer.rows, max(windows))
        collect_windows(layer, scoring, windows)
