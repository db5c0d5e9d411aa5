"""The operators as torch sees them: schemas that tell the truth, fakes with the right shapes, no graph breaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from kernel_cases import Store, make_query, make_store, random_lists
from kernel_checks import some_tokens
from torch import Tensor

from questbench import kernels
from questbench.kernels._codes import empty_codes
from questbench.kernels._operators import OPERATORS
from questbench.kernels._ops import Ops
from questbench.kernels._paged import Paged


@pytest.fixture(scope="module")
def cpu() -> Ops:
    if reason := kernels.available()["cpu"]:
        pytest.skip(reason)
    return kernels.load("cpu")


def store() -> Store:
    return make_store([20, 3], heads=2, dim=32, page_size=8, dtype=torch.float32)


ALL = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
QUICK = ALL[:-1]
"""Tracing takes long: once for every operator, with as many of its arguments as go together."""


def check(name: str, utils: Sequence[str] = ALL, **given: Any) -> None:
    """One operator, its arguments by name; those that are left out are None or 0."""
    blank = {"Tensor?": None, "int": 0, "float": 0.0, "bool": False}
    arguments = [given[one.name] if one.name in given else blank[one.kind] for one in OPERATORS[name].arguments]
    torch.library.opcheck(getattr(torch.ops.questbench_cpu, name).default, arguments, test_utils=utils)


def test_operators_that_read(cpu: Ops) -> None:
    held = store()
    q, rest = make_query(held, 2), {"page_table": held.page_table, "lengths": held.lengths}
    stored = {"k_pages": held.k_pages, "v_pages": held.v_pages, **rest}
    pages, counts = random_lists(held, 2, 2)
    tokens, slots = some_tokens(held, 4, 6)
    mass = torch.zeros((2, 2, 24))
    scores = cpu.score(q, held.paged, skip_newest=True)
    per_row = torch.tensor([2, 1], dtype=torch.int32)
    check("score", q=q, bounds=held.bounds, **rest, page_size=8, skip_newest=True)
    rule = {"lengths": held.lengths, "page_size": 8, "width": 2, "force_newest": True, "group": 2, "scale": 0.5}
    check("select", scores=scores, **rule, count=2, merge=1)
    check("select", QUICK, scores=scores, **rule, row_counts=per_row)
    check("attend", QUICK, q=q, **stored, scale=0.1)
    record = {"mass": mass, "mass_mode": 2, "visits": mass.int(), "lse": torch.zeros((2, 4))}
    odd = {"softcap": 5.0, "sinks": torch.zeros(4), "prefix_q": make_query(held, 2, 7), "prefix": 3}
    check("attend", q=q, **stored, scale=0.1, pages=pages, counts=counts, **odd, **record)
    check("attend", QUICK, q=q, **stored, scale=0.1, tokens=tokens, counts=slots, **record)
    choice = {"count": 2, "width": 2, "force_newest": True, "merge": 1, "visits": mass.int()}
    check("attend_top", q=q, **stored, bounds=held.bounds, scale=0.1, **choice)


def test_operators_of_codes(cpu: Ops) -> None:
    held = store()
    codes, ranges = empty_codes(2, 2, 24, 32, held.k_pages.device)
    written = {"codes": codes, "ranges": ranges}
    check("quantize", k_pages=held.k_pages, page_table=held.page_table, lengths=held.lengths, **written, incoming=2)
    pages, counts = random_lists(held, 2, 2)
    lists = {"lengths": held.lengths, "page_size": 8, "pages": pages, "counts": counts}
    check("estimate", q=make_query(held, 2), **written, **lists, scale=0.1)
    check("prune", logits=torch.randn((2, 4, pages.shape[2] * 8)), **lists, p=0.9)


def test_operators_that_write(cpu: Ops) -> None:
    held = store()
    held.page_table = torch.arange(held.page_table.numel(), dtype=torch.int32).view(2, -1)
    k = torch.ones((2, 2, 1, 32))
    for stored in (held.k_pages, held.v_pages, held.bounds):
        stored.nan_to_num_(0.0)
    paged = {"k_pages": held.k_pages, "v_pages": held.v_pages, "page_table": held.page_table, "lengths": held.lengths}
    check("append", k=k, v=k, **paged, bounds=held.bounds)
    check("append", QUICK, k=k, v=k, **paged, new=torch.tensor([1, 0], dtype=torch.int32))
    positions = torch.arange(24, dtype=torch.int32).expand(2, 2, -1).contiguous()
    rule = {"capacity": 19, "sinks": 2, "recent": 2}
    check("evict", **paged, positions=positions, mass=torch.rand((2, 2, 24)), **rule)
    check("evict", QUICK, **paged, positions=positions, **rule, shared=True)


def test_a_decode_step_is_one_graph(cpu: Ops) -> None:
    graphs = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(module)
        return module.forward

    def step(q: Tensor, k: Tensor, paged: Paged) -> Tensor:
        cpu.append(k, k, paged)
        choice = {"count": 2, "width": 2, "force_newest": True, "merge": "sum_softmax"}
        return cpu.attend_top(q, paged, 0.1, **choice) * 2  # type: ignore[arg-type]

    outputs = []
    for run in (step, torch.compile(step, backend=backend, fullgraph=True)):
        held = store()
        outputs.append(run(make_query(held, 2), torch.ones((2, 2, 1, 32)), held.paged))
        assert held.lengths.tolist() == [21, 4]
    assert len(graphs) == 1 and torch.equal(*outputs)
