"""What the tests of cache, attention and methods share: a driver of one layer, a counting observer, method lists."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from questbench import attention
from questbench.attention import Observer, Scoring
from questbench.cache import Layer, LayerCache, Rotate
from questbench.kernels._bounds import read_bounds
from questbench.kernels._ops import Ops
from questbench.methods._base import Method, PromptMass
from questbench.methods.h2o import H2O
from questbench.methods.oracle import Oracle
from questbench.methods.quest import Quest
from questbench.methods.random import Random
from questbench.methods.snapkv import SnapKV
from questbench.methods.streaming_llm import StreamingLLM
from questbench.methods.tova import TOVA
from questbench.methods.twilight import Twilight

# Tiny tensors: threads cost more than they save.
torch.set_num_threads(1)

HEADS, KV_HEADS, HEAD_DIM, PAGE = 4, 2, 64, 8
SCORING = Scoring(HEAD_DIM**-0.5)


def sparse_methods(budget: int) -> dict[str, Method]:
    """Every method and variant that limits what a step sees and reads all while the text fits the budget."""
    return {
        "quest": Quest(budget),
        "quest-q_head": Quest(budget, select_by="q_head"),
        "quest-max": Quest(budget, group_merge="max"),
        "h2o": H2O(budget),
        "h2o-decode": H2O(budget, score_from="decode"),
        "snapkv": SnapKV(budget, window=8),
        "tova": TOVA(budget),
        "streaming_llm": StreamingLLM(budget),
        "streaming_llm-text": StreamingLLM(budget, positions="text"),
        "twilight": Twilight(budget, p=1.0),
        "oracle": Oracle(budget),
        "random": Random(budget),
    }


def visible(method: Method, seen: int, generated: int) -> int:
    """Entries that one query head sees, ``generated`` tokens behind a prompt."""
    grows = {"generated": generated} if isinstance(method, SnapKV) else {}
    return method.tokens_visible(seen, PAGE, **grows)


NAMES = tuple(sparse_methods(64))
EVICTING = tuple(name for name, method in sparse_methods(64).items() if method.keep_step() is not None)


def rotary(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of ``x [..., D]`` at ``positions`` (broadcast against x without its last dimension)."""
    half = x.shape[-1] // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = positions.double()[..., None] * frequency
    cos, sin = angle.cos(), angle.sin()
    first, second = x.double().split(half, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def turn(x: Tensor, delta: Tensor) -> Tensor:
    """The rotation that a layer cache wants: ``x [B, H, D]`` by ``delta [B]``."""
    return rotary(x, delta[:, None])


@dataclass
class Counter:
    """An observer that notes, per step, what each row's heads read and what was resident."""

    read: list[Tensor] = field(default_factory=list)
    resident: list[list[int]] = field(default_factory=list)
    visits: list[Tensor] = field(default_factory=list)
    seen: list[list[int]] = field(default_factory=list)

    def step(self, layer: Layer, visits: Tensor) -> None:
        self.visits.append(visits.clone())
        self.read.append((visits > 0).sum(-1))
        self.resident.append([layer.resident(row) for row in range(layer.rows)])
        self.seen.append(list(layer.seen))


class Driver:
    """One layer cache fed with random entries; the same seed gives the same entries under every method."""

    def __init__(
        self,
        method: Method,
        ops: Ops,
        rows: int = 2,
        *,
        page_size: int = PAGE,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        heads: int = HEADS,
        kv_heads: int = KV_HEADS,
        rotate: Rotate | None = turn,
        observer: Observer | None = None,
        scoring: Scoring = SCORING,
        bounds: bool | None = None,
        by_channel: bool = True,
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.heads, self.rows, self.dtype, self.observer, self.scoring = heads, rows, dtype, observer, scoring
        self.layer = LayerCache(
            method,
            ops,
            rows=rows,
            kv_heads=kv_heads,
            head_dim=HEAD_DIM,
            page_size=page_size,
            dtype=dtype,
            rotate=rotate,
            bounds=bounds,
            query_heads=heads if by_channel else None,
        )

    def entries(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B, H, count, D]``."""
        layer = self.layer
        wide = torch.randn(
            (self.rows, self.heads + 2 * layer.kv_heads, count, HEAD_DIM), generator=self.generator, dtype=torch.float64
        )
        q, k, v = wide.to(self.dtype).split([self.heads, layer.kv_heads, layer.kv_heads], dim=1)
        return 2 * q, k, v

    def prefill(self, lengths: list[int], collect: frozenset[PromptMass] = frozenset()) -> Tensor:
        """A prompt with left padding."""
        q, k, v = self.entries(max(lengths))
        self.layer.append(k, v, lengths)
        out = attention.prefill(self.layer, q, k, v, self.scoring, lengths, collect)
        self.layer.end_prefill()
        return out

    def step(self) -> Tensor:
        """One decode step: ``[B, Hq, D]``."""
        q, k, v = self.entries(1)
        self.layer.append(k, v)
        return attention.decode(self.layer, q[:, :, 0].contiguous(), self.scoring, self.observer)


def run(method: Method, ops: Ops, lengths: list[int], steps: int, **options: object) -> tuple[Tensor, Driver]:
    """Prefill and decode; the outputs ``[steps, B, Hq, D]`` and the driver."""
    driver = Driver(method, ops, len(lengths), **options)  # type: ignore[arg-type]
    driver.prefill(lengths)
    return torch.stack([driver.step() for _ in range(steps)]), driver


def state(layer: LayerCache) -> list[Tensor]:
    """Everything that attention can see of a cache, copied."""
    kept = [part.clone() for row in range(layer.rows) for part in layer.gather(row)]
    kept += [layer.lengths.clone(), torch.tensor(layer.held), torch.tensor(layer.seen)]
    for extra in (layer.positions, layer.mass):
        if extra is not None:
            kept += [extra[row, :, : layer.held[row]].clone() for row in range(layer.rows)]
    if layer.bounds is not None and layer.positions is None:
        table = layer.page_table
        # By channel, only full pages have bounds.
        open_too = layer.pool.layout == "page"
        pages = [(held + (layer.page_size - 1) * open_too) // layer.page_size for held in layer.held]
        kept += [read_bounds(layer.bounds, table[row, : pages[row]].long()).clone() for row in range(layer.rows)]
    return kept


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
