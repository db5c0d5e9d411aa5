"""Attention by every alternative of the CPU kernels, over the cases of ``test_attend.py``.

What reads or computes in another order of rows and heads changes no bit, so that one of them within the error budget of
float64 speaks for all. Products of bf16 and of fp32 differ, and are held to the budget each.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conformance_backends import BACKENDS, Backend
from test_attend import (  # noqa: F401  # collected here once more, over the fixtures of this file
    test_every_page_size_and_group,
    test_every_storage_type_and_head_size,
    test_lists_of_all_tokens_give_what_pages_give,
    test_long_rows_and_lists,
    test_softcap_sinks_and_prefix,
)

from questbench import _compiling, kernels
from questbench.kernels import _build, _choices
from questbench.kernels._choices import KINDS, SETTINGS

WEIGHTS = next(one for one in SETTINGS if one.name == "weights")
EMULATED = os.environ.get("QUESTBENCH_ISA") == _build.EMULATED
WAYS = list(WEIGHTS.values)[: 2 if EMULATED or "avx512_bf16" in _compiling.processor() else 1]
"""To weigh values, as far as the library has them."""


def plans(library: _choices.Library, weights: str) -> list[_choices.Plan]:
    """Every way to read with the default way to compute, and the other way round."""
    found = []
    for names in (("order", "ahead", "fetch"), ("products", "values")):
        chosen = [one for one in library.settings if one.name in names]
        for values in itertools.product(*(one.values for one in chosen)):
            forced = dict(zip((one.name for one in chosen), values, strict=True))
            forced |= {"weights": weights} if WEIGHTS in library.settings else {}
            found.append(library.forced(library.now(), forced))
    return found


class EveryWay:
    """Ops whose attention is carried out by every alternative, and must be the same bits each time."""

    def __init__(self, ops: Any, library: _choices.Library, ways: list[_choices.Plan]) -> None:
        self.ops, self.library, self.ways = ops, library, ways

    def attend(self, *given: Any, **options: Any) -> torch.Tensor:
        written = [name for name in ("mass", "visits", "lse") if options.get(name) is not None]
        found = []
        for plan in self.ways:
            self.library.apply(plan)
            own = {name: options[name].clone() for name in written}
            found.append((self.ops.attend(*given, **{**options, **own}), *own.values()))
        for plan, results in zip(self.ways, found, strict=True):
            same = map(torch.equal, results, found[0])
            assert all(same), plan
        for name, value in zip(written, found[0][1:], strict=True):
            options[name].copy_(value)
        return found[0][0]


@pytest.fixture
def backend() -> Backend:
    """The one that has alternatives."""
    return BACKENDS["cpu"]


@pytest.fixture(params=WAYS)
def ops(request: pytest.FixtureRequest, backend: Backend) -> Iterator[EveryWay]:
    """Every way with one way to weigh values."""
    loaded = backend.load()
    library = _choices.Library(_build.load_cpu())
    assert WEIGHTS not in library.settings or len(WAYS) == 2
    before = library.now()
    ways = plans(library, request.param)
    assert len(ways) > len(KINDS)
    yield EveryWay(loaded, library, ways)
    library.apply(before)


def test_every_alternative_of_every_setting_is_run() -> None:
    if reason := kernels.available()["cpu"]:
        pytest.skip(reason)
    library = _choices.Library(_build.load_cpu())
    run = [plan for name in WAYS for plan in plans(library, name)]
    for kind in KINDS:
        for one in library.of(kind):
            assert {plan[kind][one.name] for plan in run} == set(one.values), (kind, one.name)
