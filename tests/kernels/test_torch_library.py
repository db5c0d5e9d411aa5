"""The operators as torch sees them: schemas that tell the truth, fakes with the right shapes, no graph breaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import Store, make_query, make_store, random_lists
from torch import Tensor

from questbench import kernels
from questbench.kernels._codes import empty_codes
from questbench.kernels._ops import Ops
from questbench.kernels._paged import Paged


@pytest.fixture(scope="module")
def cpu() -> Ops:
    if reason := kernels.available()["cpu"]:
        pytest.skip(reason)
    return kernels.load("cpu")


def store() -> Store:
    return make_store([20, 3], heads=2, dim=32, page_size=8, dtype=torch.float32)


def check(name: str, *arguments: Any) -> None:
    torch.library.opcheck(getattr(torch.ops.questbench_cpu, name).default, arguments)


def test_operators_that_read(cpu: Ops) -> None:
    held = store()
    q, rest = make_query(held, 2), (held.page_table, held.lengths)
    pages, counts = random_lists(held, 2, 2)
    mass = torch.zeros((2, 2, 24))
    scores = cpu.score(q, held.paged, skip_newest=True)
    per_row = torch.tensor([2, 1], dtype=torch.int32)
    check("score", q, held.bounds, *rest, 8, True)
    check("select", scores, held.lengths, 8, 2, None, 2, True, 1, 2, 0.5)
    check("select", scores, held.lengths, 8, 0, per_row, 2, True, 0, 2, 0.5)
    stored = held.k_pages, held.v_pages, *rest
    check("attend", q, *stored, 0.1, None, None, 0.0, None, None, 0, None, 0, None)
    record = (mass, 2, mass.int())
    check("attend", q, *stored, 0.1, pages, counts, 5.0, torch.zeros(4), make_query(held, 2, 7), 3, *record)
    check(
        "attend_top", q, held.k_pages, held.v_pages, held.bounds, *rest, 0.1, 2, None, 2, True, 1, 0.0, None, mass.int()
    )


def test_operators_of_codes(cpu: Ops) -> None:
    held = store()
    codes, ranges = empty_codes(2, 2, 24, 32, held.k_pages.device)
    check("quantize", held.k_pages, held.page_table, held.lengths, codes, ranges, 2, None)
    lists = (held.lengths, 8, *random_lists(held, 2, 2))
    check("estimate", make_query(held, 2), codes, ranges, *lists, 0.1, 0.0)
    check("prune", torch.randn((2, 4, lists[2].shape[2] * 8)), *lists, 0.9)


def test_operators_that_write(cpu: Ops) -> None:
    held = store()
    held.page_table = torch.arange(held.page_table.numel(), dtype=torch.int32).view(2, -1)
    k = torch.ones((2, 2, 1, 32))
    for stored in (held.k_pages, held.v_pages, held.bounds):
        stored.nan_to_num_(0.0)
    pages = (held.k_pages, held.v_pages)
    check("append", k, k, *pages, held.bounds, held.page_table, held.lengths, None)
    check("append", k, k, *pages, None, held.page_table, held.lengths, torch.tensor([1, 0], dtype=torch.int32))
    positions = torch.arange(24, dtype=torch.int32).expand(2, 2, -1).contiguous()
    check("evict", *pages, held.page_table, held.lengths, positions, torch.rand((2, 2, 24)), 19, 2, 2, False)
    check("evict", *pages, held.page_table, held.lengths, positions, None, 19, 2, 2, True)


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
