"""Chooses among the alternatives of the CPU kernels by measurement: a few seconds after the library was built.

Each kind of attention is timed on cold data in the shape of an 8B model's layer. Alternatives take turns in rounds, so
that a machine that slows down slows all of them. The default stays unless another one is faster in rounds that had no
part in picking it: by more than 2 % in the median, and in so many of them that chance does that once in seventy times.
On a busy machine the default stays, since nothing is that clear there.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from questbench import _compiling, _memory
from questbench.kernels._choices import KINDS, Library, Plan

SECONDS = 5.0
"""Longest time for everything; kinds that are left over keep their defaults."""
MARGIN = 0.02
"""What a change of the default must gain."""
DENSE, LISTS = (21, 16), (41, 28)
"""Rounds that decide between the default and the fastest of the others, and how many it must win (chance: 1.4 %)."""
TRIALS, FINALISTS, FINALS = 2, 4, 4
"""Rounds with all alternatives, how many of them go on beside the default, and rounds with those."""
HEADS, GROUP, DIM, PAGE = 8, 4, 128, 16
POOL = 128 << 20
"""Bytes of all keys, and as many of values: more than the caches of data and of addresses hold."""
TEXTS = 2
"""That it is divided into: 32k entries each of several query heads per KV head, 8k of one. In shorter ones the order of
reading hardly matters."""
LISTED = 128
"""Pages of a list."""

Alternative = dict[str, str]


def measure(library: Library, *, module: Any, threads: int) -> dict[str, Any]:
    """What is stored: ``choice``, what was measured (medians in seconds), on what and how long it took."""
    start = time.monotonic()
    plan, times = library.now(), {}
    before = {kind: dict(settings) for kind, settings in plan.items()}
    # Lists first: their calls are short, and what takes too long stays as it is.
    for kind, call in reversed(list(zip(KINDS, _works(module, threads), strict=True))):
        times[kind] = _choose(library, plan, kind, call, start + SECONDS)
    library.apply(before)
    return {
        "processor": _compiling.processor_name(),
        "threads": threads,
        "seconds": round(time.monotonic() - start, 2),
        "choice": plan,
        "default": before,
        "measured": times,
    }


def _choose(library: Library, plan: Plan, kind: str, call: Callable[[], float], deadline: float) -> list[Any]:
    """Put the best of a kind into the plan, first how to read, then how to compute; returns what was measured."""
    told: list[Any] = []

    def timed(alternative: Alternative) -> float:
        library.apply({kind: alternative})
        return call()

    for names in (("order", "ahead", "fetch"), ("products", "values", "weights")):
        others = alternatives(library, kind, plan[kind], names)
        plan[kind], seconds = better(plan[kind], others, timed, deadline, LISTS if kind in KINDS[2:] else DENSE)
        told += [{**one, "seconds": value} for one, value in seconds]
    return told


def alternatives(library: Library, kind: str, default: Alternative, names: Sequence[str]) -> list[Alternative]:
    """All that differ from the default in settings of these names."""
    settings = [one for one in library.of(kind) if one.name in names]
    found = [
        {**default, **dict(zip([one.name for one in settings], values, strict=True))}
        for values in itertools.product(*(one.values for one in settings))
    ]
    # Without fetches it does not matter where they would go.
    same = default.get("fetch")
    return [one for one in found if one != default and (one["ahead"] != "0" or one.get("fetch") == same)]


def better(
    default: Alternative,
    others: Sequence[Alternative],
    timed: Callable[[Alternative], float],
    deadline: float,
    deciding: tuple[int, int],
) -> tuple[Alternative, list[tuple[Alternative, float]]]:
    """The default, or what is clearly faster.

    Args:
        timed: runs an alternative once and returns its seconds.
        deadline: by ``time.monotonic``; after it the default stays.
        deciding: rounds, and how many another one must win.

    Returns:
        It, and the median time of every alternative over all its rounds.
    """
    names, source = [default, *others], random.Random(0)
    taken: list[list[float]] = [[] for _ in names]

    def rounds(count: int, among: Sequence[int]) -> bool:
        order = list(among)
        for _ in range(count):
            source.shuffle(order)
            for at in order:
                if time.monotonic() > deadline:
                    return False
                taken[at].append(timed(names[at]))
        return True

    def fastest(among: Iterable[int]) -> list[int]:
        return sorted(among, key=lambda at: statistics.median(taken[at]))

    def decided() -> int:
        every = range(len(names))
        if not others or not rounds(1, every):
            return 0
        for seconds in taken:
            seconds.clear()  # the first round warms up
        if not rounds(TRIALS, every):
            return 0
        finalists = fastest(every[1:])[:FINALISTS]
        if not rounds(FINALS, [0, *finalists]):
            return 0
        first = fastest(finalists)[0]
        if statistics.median(taken[first]) > (1 - MARGIN / 2) * statistics.median(taken[0]):
            return 0  # not worth more time
        count, wins = deciding
        if not rounds(count, [0, first]):
            return 0
        ratios = [after / before for before, after in zip(taken[0][-count:], taken[first][-count:], strict=True)]
        clear = sum(ratio < 1 for ratio in ratios) >= wins and statistics.median(ratios) < 1 - MARGIN
        return first if clear else 0

    return names[decided()], [
        (one, statistics.median(seconds)) for one, seconds in zip(names, taken, strict=True) if seconds
    ]


def _works(module: Any, threads: int) -> list[Callable[[], float]]:
    """For each kind, a call of attention on data that no cache holds; it returns its seconds."""
    pages = POOL // (HEADS * PAGE * DIM * 2)
    grouped = pool(pages, HEADS)
    # The same memory with as many KV heads as query heads.
    single = [stored.view(pages // GROUP, HEADS * GROUP, PAGE, DIM) for stored in grouped]
    return [work(module, stored, listed, threads) for listed in (False, True) for stored in (single, grouped)]


def pool(pages: int, heads: int) -> list[Tensor]:
    """Keys and values of so many pages, 16 entries each."""
    return [_memory.empty((pages, heads, PAGE, DIM), torch.bfloat16).fill_(0.01) for _ in range(2)]


def work(module: Any, stored: list[Tensor], listed: bool, threads: int, texts: int = TEXTS) -> Callable[[], float]:
    """A call of attention that returns its seconds.

    Args:
        stored: keys and values.
        listed: read a list of pages for each KV head, other ones in each call, of everything stored.
        texts: that they are divided into, which calls take in turn.
    """
    keys, values = stored
    heads = keys.shape[1]
    q = torch.full((1, HEADS * GROUP, DIM), 0.01, dtype=torch.bfloat16)
    out = torch.empty_like(q)
    each = keys.shape[0] // (1 if listed else texts)
    tables = torch.arange(keys.shape[0], dtype=torch.int32).view(-1, 1, each)
    lengths = torch.tensor([each * PAGE], dtype=torch.int32)
    source = torch.Generator().manual_seed(0)
    lists, counts = None, None
    if listed:
        # Pages of all the text in turn, so that none comes again while a cache may hold it.
        order = torch.stack([torch.randperm(each, generator=source) for _ in range(heads)])
        few = min(LISTED, each)
        parts = order[:, : each // few * few].view(heads, -1, few).transpose(0, 1)
        lists = parts.sort(-1).values.to(torch.int32).contiguous()
        counts = torch.full((1, heads), few, dtype=torch.int32)
    turns = itertools.count()
    # softcap, sinks, prefix_q, prefix, mass, mass_mode, visits, lse
    rest = (0.0, None, None, 0, None, 0, None, None)

    def call() -> float:
        turn = next(turns)
        table = tables[turn % len(tables)]
        chosen = None if lists is None else lists[turn % len(lists)].unsqueeze(0)
        start = time.perf_counter()
        module.attend(q, keys, values, table, lengths, DIM**-0.5, chosen, None, counts, *rest, out, threads)
        return time.perf_counter() - start

    return call
