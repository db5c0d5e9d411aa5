"""What a method is: which entries a decode step reads (``select``) and which it keeps afterwards (``forget``).

Methods are declarative: they return *what* to read or keep, and ``attention.py`` carries it out with the ops of a
backend. Dense is a method.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from questbench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from questbench.kernels._ops import Merge, Ops

Observes = Literal["nothing", "last", "sum"]
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


Selection = Everything | TopPages | Pages | Tokens


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
    """The shape of one layer's cache, for traffic predictions."""

    query_heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    element_bytes: int

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry: its key and value in all KV heads. The bounds of one page weigh the same."""
        return 2 * self.kv_heads * self.head_dim * self.element_bytes


@dataclass(frozen=True)
class Method(ABC):
    """A KV-cache policy; its dataclass fields are its parameters (``-M name=value``)."""

    budget: int = 2048
    """KV entries visible to one query head in a decode step, itself included, in every non-dense layer."""

    observes: ClassVar[Observes] = "nothing"
    """Attention mass of decode steps that ``forget`` needs: none, this step's, or the running sum."""
    needs_bounds: ClassVar[bool] = False
    """Whether the cache must keep page bounds."""
    budgeted: ClassVar[bool] = True
    """Whether the budget limits what is read; only dense has none."""
    yardstick: ClassVar[bool] = False
    """A reference point (oracle, random) that no one would deploy; refused in ``kernel`` and ``e2e``."""
    paper: ClassVar[str] = ""
    """Where the method comes from."""

    @property
    def name(self) -> str:
        """Registered name: the stem of the method's file."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @property
    def prefill_observes(self) -> Observes:
        """Attention mass of the prefill's queries that ``forget`` needs: none, the last row's, or all rows' sum."""
        return "nothing"

    @property
    def scores_newest(self) -> bool:
        """Whether the newest page, which may be open, is scored too: its bounds must then be kept at every step."""
        return False

    @property
    def warmup_steps(self) -> int:
        """Decode steps after the prefill that read everything because the algorithm itself says so."""
        return 0

    @abstractmethod
    def select(self, q: Tensor, layer: Layer, ops: Ops) -> Selection:
        """What the query ``[B, Hq, D]`` of this decode step reads. The new entry is already in the cache."""

    def reread(self, q: Tensor, layer: Layer) -> Everything:
        """How the queries ``[B, H, D]`` of a later turn (several tokens behind a filled cache) see what is resident."""
        return Everything()

    def forget(self) -> Keep | None:
        """What is kept after each decode step and after the prefill; ``None`` keeps everything."""
        return None

    @property
    def needs_rotation(self) -> bool:
        """Whether ``select`` turns queries with ``layer.rotate``."""
        return False

    @property
    def forgets_prefill(self) -> bool:
        """Whether ``forget`` applies right after the prefill too (else only after the first decode step)."""
        return True

    def check(self, page_size: int) -> None:
        """Raise UsageError if the parameters make no sense with this page size."""

    @abstractmethod
    def tokens_visible(self, length: int, page_size: int) -> int:
        """Entries one query head sees in a step when the text, the query's token included, is ``length`` long."""

    @abstractmethod
    def bytes_read(self, length: int, shape: CacheShape) -> int:
        """Bytes of cache that one decode step of one row must read in one layer: KV entries and page bounds."""

    def tokens_scored(self, length: int) -> int:
        """Keys read to decide what to attend; counted apart from the entries attended. Only yardsticks do that."""
        del length
        return 0

    def arguments(self, page_size: int) -> dict[str, object]:
        """Every parameter with its effective value, for the record."""
        del page_size
        return dataclasses.asdict(self)


def at_least(method: Method, entries: int, why: str) -> None:
    """Raise UsageError if the budget cannot hold ``entries``."""
    if method.budget < entries:
        raise UsageError(
            f"{method.name} needs a budget of at least {entries} ({why}), not {method.budget}.",
            f"Use --budget {entries} or more.",
        )
