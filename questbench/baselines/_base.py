"""What a baseline is: dense attention of another library, at its best, for a layer (``kernel``) or a model (``e2e``).

Most libraries attend in several ways, and which is the fastest depends on the shape. Each way must give the right
result first; then they are told apart in rounds of their own. The fastest is timed anew beside the methods, so that the
time shown is none of those it was chosen by: luck in the trial does not make it look faster than it is.
"""

from __future__ import annotations

import contextlib
from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from questbench._noise import Noise
from questbench.errors import first_line
from questbench.measure import stats
from questbench.measure.memory import out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from questbench.cache import LayerCache
    from questbench.models.hf_cache import SparseCache

ROUNDS = 7
"""Rounds in which the fastest of several ways is found."""
SECONDS = 5.0
AGREE = 0.02
"""A way whose output differs from the right one by more than this, of the largest value, does not count. Storage of 16
bits explains a few thousandths; a wrong page or a missing entry is far above."""


class Still:
    """An arm of which nothing grows.

    Args:
        run: what is timed; told the index of the step.
        copies: of its data, which take turns.
    """

    def __init__(self, run: Callable[[int], Tensor], copies: int = 1) -> None:
        self.step, self.copies = run, copies

    def setup(self) -> None:
        """Nothing grows."""


@dataclass
class Text:
    """One layer's keys and values at one length: what ways of attending are given in ``kernel``.

    None of them appends: the whole text is there already, which favours the baseline.
    """

    queries: Tensor
    """``[n, B, Hq, D]``, used in turn."""
    noise: Noise
    """What the text is made of."""
    seq_len: int
    copies: int
    """Of the text, so that each is read from memory."""
    pages: Callable[[], Sequence[LayerCache]]
    """Our caches of it, one per copy."""
    compile_limit: float = 0.0
    """Longest time to compile a way, in seconds; 0 leaves out what must be compiled so."""
    _next: int = -1

    @property
    def scale(self) -> float:
        """1 / sqrt(D)."""
        return float(self.queries.shape[-1] ** -0.5)

    def arm(self, attend: Callable[[Tensor, int], Tensor]) -> Still:
        """A way as an arm. Copies take turns whoever asks: no way finds in a cache what another has just read.

        Args:
            attend: of a query ``[B, Hq, D]`` and the number of a copy.
        """

        def step(index: int) -> Tensor:
            self._next = (self._next + 1) % self.copies
            return attend(self.queries[index % len(self.queries)], self._next)

        return Still(step, self.copies)


@dataclass
class Ways:
    """The ways of one baseline to attend to a :class:`Text`."""

    arms: dict[str, Still]
    """Those whose output is right."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Ways that do not work here, with the reason."""


@dataclass
class Decode:
    """A model and a length of text: what a baseline is given in ``e2e``."""

    model: PreTrainedModel
    device: str
    noise: Noise
    """Entries to fill a library's own cache with."""
    seq_len: int
    room: int
    """Steps between two rewinds."""
    captured: bool
    """Whether steps are captured and replayed."""
    fork: Callable[[], SparseCache] | None
    """Makes a dense cache of ours over the prompts, with room for the steps; not for one that is alone in memory."""
    first: Tensor | None
    """The first token ``[B]``, where there are prompts."""


@dataclass
class Fastest:
    """The fastest way of one baseline, or why there is none."""

    arm: Any = None
    path: str = ""
    trial: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Seconds of every way that was tried, round by round."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Ways that were not timed, with the reason."""
    why: str = "no way of attending works here"
    """Why there is no arm, where no way was tried."""

    @property
    def paths(self) -> dict[str, float]:
        """Median seconds of every way that was tried."""
        return {name: stats.median(seconds) for name, seconds in self.trial.items()}

    @property
    def reason(self) -> str | None:
        """Why there is no arm; or, with an arm, why some ways were left out."""
        reasons = "; ".join(f"{name}: {why}" for name, why in self.left_out.items())
        return reasons or (None if self.arm is not None else self.why)


class Baseline(ABC):
    """One library; the docstring of its file says what is timed."""

    verbs: ClassVar[tuple[str, ...]]
    """Commands that time it: ``kernel`` calls :meth:`ways`, ``e2e`` calls :meth:`decode`."""
    device: ClassVar[str] = "any"
    """Where it works: ``cpu``, ``cuda`` or ``any``."""
    asked: ClassVar[bool] = False
    """Timed only when asked for, and alone in memory, in rounds of its own."""

    @property
    def name(self) -> str:
        """Registered name: the stem of the file."""
        return type(self).__module__.rsplit(".", 1)[-1]

    def unavailable(self) -> str | None:
        """``None`` if it works on this machine, else the reason as one sentence. Never raises."""
        return None

    def stores(self, group: int, device: str) -> int:
        """How often :meth:`ways` stores a text besides our pages, in texts stored once per KV head.

        Args:
            group: query heads per KV head.
        """
        del group, device
        return 0

    def ways(self, text: Text) -> Ways:
        """Everything it can attend by, ready to be timed."""
        raise NotImplementedError

    def decode(self, run: Decode) -> Fastest:
        """A decode step of the whole model by its fastest attention.

        Raises:
            CellError: it does not work with this model.
        """
        raise NotImplementedError


@contextlib.contextmanager
def tried(name: str, left_out: dict[str, str]) -> Iterator[None]:
    """Whatever a library says in the block leaves this way out; but for want of memory, which ends the cell."""
    try:
        yield
    except Exception as error:  # a library of kernels compiled on the spot fails in ways of its own
        if out_of_memory(error):
            raise
        left_out[name] = first_line(error)


def right(arms: Mapping[str, Still], want: Tensor, left_out: dict[str, str]) -> dict[str, Still]:
    """Those whose first step gives what it should."""
    found = {}
    for name, arm in arms.items():
        with tried(name, left_out):
            off = difference(arm.step(0), want)
            if off <= AGREE:
                found[name] = arm
            else:
                left_out[name] = f"its result is off by {off:.1%} of the largest value"
    return found


def fastest(
    arms: Mapping[str, Any], interleave: Callable[..., Mapping[str, Any]], left_out: Mapping[str, str], **options: Any
) -> Fastest:
    """Time all in rounds of their own.

    Args:
        interleave: as :func:`questbench.measure.timer.interleave`, which takes ``options``.
    """
    if not arms:
        return Fastest(left_out=left_out)
    limits = {"rounds_min": ROUNDS, "rounds_max": ROUNDS, "target_noise": 0.0, "max_seconds": SECONDS, **options}
    timed = interleave(arms, **limits)
    found = Fastest(trial={name: timed[name].seconds for name in arms}, left_out=left_out)
    paths = found.paths
    found.path = min(paths, key=paths.__getitem__)
    found.arm = arms[found.path]
    return found


def difference(got: Tensor, want: Tensor) -> float:
    """Largest difference, relative to the largest value that is right; infinite where there is NaN."""
    found = float((got.float() - want.float()).abs().amax() / want.float().abs().amax())
    return found if found == found else float("inf")
