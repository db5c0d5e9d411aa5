"""What a method is: a policy for one layer, said in a few optional hooks that are named for when they are called.

    a layer is made       head_groups     which KV heads go under which method, each group in a cache of its own
    a cache is made       start           state of the method's own beside the cache
    a prompt is read      read_prompt     its attention; dense, unless a method has its own
    the prompt's end      prompt_mass     whose attention of the prompt is collected; ``judge`` makes importance of it
                          keep_prompt     what is kept
    a step begins         select          what is read
    a step has read       merge           what is added to its output from the method's state
    a step ends           step_mass       what attention of the step is kept
                          keep_step       what is kept
    a later turn          reread          how several queries see what is resident

Methods are declarative: they return *what* to read or keep, and ``attention/`` carries it out with the ops of a
backend. Dense is a method.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from questbench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from questbench.kernels._ops import MassMode, Merge, Ops

PromptMass = int | Literal["sum"]
"""Whose attention of a prompt is summed per entry and KV head: its last n queries', or (``sum``) all queries'."""
Layer = Any
"""A ``LayerCache``, which a method's own file may name: it imports this one, and no two files import each other."""


@dataclass(frozen=True)
class Everything:
    """Read every resident entry."""

    prefix_q: Tensor | None = None
    """``[B, Hq, D]``: query for the first ``prefix`` slots, where it differs from the others'."""
    prefix: int = 0
    """Slots that ``prefix_q`` is for."""


@dataclass(frozen=True)
class TopPages:
    """Read the pages with the best bounds; attention runs score, select and attend, fused where a backend can."""

    count: int | Tensor
    """Pages to read, the newest included: an int, or ``[B]`` int32."""
    width: int
    """Upper limit of ``count`` over the batch."""
    force_newest: bool = True
    """The newest page is always read and not scored."""
    merge: Merge = "sum_softmax"
    """How the query heads of a KV head agree on one list; ``none`` gives each query head its own."""


@dataclass(frozen=True)
class Pages:
    """Read these pages."""

    pages: Tensor
    """``[B, H, width]`` int32 logical page ids, ascending, H = Hk or Hq."""
    counts: Tensor
    """``[B, H]`` int32."""


@dataclass(frozen=True)
class Tokens:
    """Read these entries."""

    tokens: Tensor
    """``[B, H, width]`` int32 slots, ascending, H = Hk or Hq."""
    counts: Tensor
    """``[B, H]`` int32."""


@dataclass(frozen=True)
class TopMass:
    """Of the best pages, read the fewest entries that hold a share of the attention mass, as codes of keys tell it."""

    pages: TopPages
    codes: Tensor
    """``[B, Hk, C, bytes]`` uint8 by slot; see ``kernels/_codes.py``."""
    ranges: Tensor
    """``[B, Hk, C, 2]`` fp32."""
    p: float
    """The share, 0 to 1."""


Selection = Everything | TopPages | Pages | Tokens | TopMass


@dataclass(frozen=True)
class Keep:
    """Keep ``entries`` of the resident entries and drop the rest.

    Kept without competing: positions below ``sinks`` and the ``recent`` newest positions. The rest of the room goes
    to the entries with the most attention mass (``by="mass"``) or to the newest ones (``by="age"``). Ties keep the
    newer entry; NaN mass counts as the greatest.
    """

    entries: int
    sinks: int = 0
    recent: int = 0
    by: Literal["mass", "age"] = "mass"
    shared: bool = False
    """One set for all KV heads of the layer, by the mass summed over them."""


@dataclass(frozen=True)
class CacheShape:
    """One layer's cache: its shape, and which layer of the model it is."""

    query_heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    element_bytes: int
    index: int = 0
    layers: int = 1
    """Of the model; 1 where a layer stands alone."""

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry: its key and value in all KV heads. The bounds of one page weigh the same."""
        return 2 * self.kv_heads * self.head_dim * self.element_bytes

    def part(self, kv_heads: int) -> CacheShape:
        """The cache of some of the KV heads and of the query heads that read them."""
        group = self.query_heads // self.kv_heads
        return dataclasses.replace(self, query_heads=group * kv_heads, kv_heads=kv_heads)


@dataclass(frozen=True)
class HeadGroup:
    """KV heads of a layer that are stored together, under a method of their own."""

    heads: tuple[int, ...]
    method: Method


class State:
    """What a method keeps of one layer beside its cache: codes, centroids, a selection, an average.

    It goes wherever the cache goes: the cache tells it of every change. Steps may be captured in a CUDA graph, so that
    :meth:`appended` of one entry per row and :meth:`stepped` must be the same device operations each time, on tensors
    that stay where they are. A method that needs less overrides less.
    """

    def appended(self, layer: Layer, new: Sequence[int]) -> None:
        """The last ``new[b]`` entries of each row have just been stored, in the slots behind the others."""

    def prompted(self, layer: Layer) -> None:
        """A prompt is complete, and what the method does not keep of it is gone."""

    def stepped(self, layer: Layer) -> None:
        """A decode step has read, its mass is collected, and nothing is dropped yet: ``layer.mass`` may be changed.

        What is dropped then, one entry per KV head at most, leaves its slot to the last entry of the row.
        """

    def dropping(self, layer: Layer, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Entries in ``slots`` ``[B, Hk, n]`` are about to go, after a step or at a prompt's end, and are still there.

        Keys and values ``[B, Hk, n, D]``; a row that drops fewer has -1 for a slot and zeros behind its last.
        """

    def moved(self, layer: Layer, kept: Sequence[Tensor]) -> None:
        """Entries were gathered: slot i of row b is the former slot ``kept[b][h, i]`` (``[Hk, n]`` int64)."""

    def fit(self, layer: Layer, slots: int) -> None:
        """Rows may have ``slots`` entries from now on: make room."""

    def fork(self, layer: Layer) -> State:
        """A state of its own for ``layer``, which holds the same entries in the same slots."""
        raise NotImplementedError(f"{type(self).__name__} cannot be forked")

    def select_rows(self, rows: Tensor) -> None:
        """Row i becomes the old row ``rows[i]``."""
        raise NotImplementedError(f"{type(self).__name__} cannot select rows")

    def rewind(self, held: Sequence[int]) -> None:
        """Each row has forgotten its newest entries and holds ``held[b]``."""

    def bytes(self, layer: Layer, stored: int) -> int:
        """Bytes of the layer's entries and of this state together, where the entries alone would take ``stored``."""
        return stored


@dataclass(frozen=True)
class Method:
    """A KV-cache policy; its dataclass fields are its parameters (``-M name=value``)."""

    budget: int = 2048
    """KV entries visible to one query head in a decode step, itself included, in every non-dense layer."""

    step_mass: ClassVar[MassMode] = "none"
    """Attention mass of decode steps that ``keep_step`` needs: none, this step's, or the running sum."""
    budgeted: ClassVar[bool] = True
    """Whether the budget limits what is read; only dense has none."""
    yardstick: ClassVar[bool] = False
    """A reference point (oracle, random) that no one would deploy; refused in ``kernel`` and ``e2e``."""

    @property
    def name(self) -> str:
        """Registered name: the stem of the method's file."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @property
    def needs_bounds(self) -> Literal["closed", "all"] | None:
        """Pages whose key bounds must be right at every step: ``all``, full ones, or none, as with a ``keep_step``."""
        return None

    @property
    def needs_rotation(self) -> bool:
        """Whether ``select`` turns queries with ``layer.rotate``."""
        return False

    @property
    def prompt_mass(self) -> PromptMass:
        """Attention of the prompt that ``judge`` needs: that of its last n queries (0: none), or the sum over all."""
        return 0

    @property
    def warmup_steps(self) -> int:
        """Decode steps after the prefill that read everything because the algorithm itself says so."""
        return 0

    def check(self, page_size: int) -> None:
        """Raise UsageError if the parameters make no sense with this page size."""

    def head_groups(self, shape: CacheShape) -> tuple[HeadGroup, ...]:
        """How this layer is stored: which KV heads under which method. One group of all heads is the usual cache.

        Raises:
            UsageError: the parameters make no sense for a layer of this shape and place.
        """
        return (HeadGroup(tuple(range(shape.kv_heads)), self),)

    def start(self, layer: Layer) -> State | None:
        """State for a new cache, which may hold entries already where it is a fork of another method's."""
        return None

    @property
    def prefill_key(self) -> Hashable:
        """What a prompt's entries depend on: methods of equal keys can share a prefill. ``None``: it is dense."""
        return self if defines(self, "read_prompt") else None

    def read_prompt(self, q: Tensor, k: Tensor, v: Tensor, layer: Layer, scoring: Any) -> Tensor:
        """Attention ``[Hq, m, D]`` of one row's prompt, or of a part of it, instead of the dense one.

        ``q`` ``[Hq, m, D]`` are the newest m of the n entries ``[Hk, n, D]``. ``scoring`` has the model's ``scale``,
        ``softcap`` and ``sinks``. Attention mass of the prompt that anyone judges by is dense all the same.
        """
        raise NotImplementedError

    def judge(self, layer: Layer, mass: Tensor) -> Tensor:
        """Importance of the entries at the prompt's end, from the ``prompt_mass`` that was collected.

        Args:
            mass: ``[B, Hk, n]`` fp32, summed over the query heads of a group; row b has ``layer.held[b]`` entries.

        Returns:
            ``[B, Hk, n]``; what ``keep_prompt`` with ``by="mass"`` goes by.
        """
        return mass

    def keep_prompt(self) -> Keep | None:
        """What is kept after a prompt; ``None`` keeps everything."""
        return self.keep_step()

    def select(self, q: Tensor, layer: Layer, ops: Ops) -> Selection:
        """What the query ``[B, Hq, D]`` of this decode step reads. The new entry is already in the cache."""
        return Everything()

    def merge(self, q: Tensor, out: Tensor, lse: Tensor, layer: Layer) -> Tensor:
        """What a step returns ``[B, Hq, D]``: its output merged with what ``layer.state`` knows of dropped entries.

        ``lse`` ``[B, Hq]`` is the logarithm of what ``out`` was divided by; see ``Ops.attend``.
        """
        return out

    def keep_step(self) -> Keep | None:
        """What is kept after each decode step; ``None`` keeps everything."""
        return None

    def reread(self, q: Tensor, layer: Layer) -> Everything:
        """How the queries ``[B, H, D]`` of a later turn (several tokens behind a filled cache) see what is resident.

        Each of them sees what the turn before has left, and the new entries up to its own.
        """
        return Everything()

    @property
    def keeps_all(self) -> bool:
        """Whether it drops nothing, so that its cache can share the pages of a dense one."""
        return self.keep_prompt() is None and self.keep_step() is None

    def tokens_resident(self, length: int) -> int:
        """Entries per KV head that a cache holds in the first step behind a prompt of ``length - 1`` tokens."""
        keep = self.keep_prompt() or self.keep_step()
        return length if keep is None else min(length, keep.entries + 1)

    def tokens_visible(self, length: int, page_size: int) -> int:
        """Entries one query head sees in the first step behind a prompt of ``length - 1`` tokens."""
        return self.tokens_resident(length)

    def bytes_read(self, length: int, shape: CacheShape) -> int:
        """Bytes of cache that this step of one row must read in one layer: KV entries and page bounds."""
        return shape.entry_bytes * self.tokens_visible(length, shape.page_size)

    def bytes_counted(self, length: int, shape: CacheShape, read: float) -> int:
        """The same for a step that was counted and read ``read`` entries per KV head.

        Where counts depend on the data, ``bytes_read`` is the most there can be and this is what was.
        """
        del read
        return self.bytes_read(length, shape)

    def tokens_scored(self, length: int) -> int:
        """Keys read to decide what to attend; counted apart from the entries attended. Only yardsticks do that."""
        del length
        return 0

    def arguments(self, page_size: int) -> dict[str, object]:
        """Every parameter with its effective value, for the record."""
        del page_size
        return dataclasses.asdict(self)


def defines(of: Method | State, hook: str) -> bool:
    """Whether a method or a state has a hook of its own: what only this hook needs is made for nobody else."""
    return getattr(type(of), hook) is not getattr(Method if isinstance(of, Method) else State, hook)


def at_least(method: Method, entries: int, why: str) -> None:
    """Raise UsageError if the budget cannot hold ``entries``."""
    if method.budget < entries:
        raise UsageError(
            f"{method.name} needs a budget of at least {entries} ({why}), not {method.budget}.",
            f"Use --budget {entries} or more.",
        )
