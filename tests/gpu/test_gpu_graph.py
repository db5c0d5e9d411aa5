"""CUDA graphs: a captured step is the step, also after lengths, tables, queries and lists changed in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from gpu_bodies import DEVICE, REHEARSED, backend, bodies_of, load
from kernel_cases import make_query, make_store
from replaying import record as record_on_cpu
from replaying import through_the_dispatcher

from questbench.experiments.kernel.arms import LayerShape
from questbench.kernels._ops import Ops
from questbench.kernels._paged import Paged

pytestmark = pytest.mark.gpu


def record(work: Callable[[], object]) -> Callable[[], None]:
    """Capture ``work`` and replay it once, so that, as in tests/experiments, the recording takes effect."""
    if REHEARSED:
        return record_on_cpu(work)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        work()
    graph.replay()
    replay: Callable[[], None] = graph.replay
    return replay


@pytest.fixture(autouse=True)
def stream() -> Iterator[None]:
    """Eager steps and captures on one stream, so that what a backend keeps for a stream exists before a capture."""
    if REHEARSED:
        yield
        return
    with torch.cuda.stream(torch.cuda.Stream()):
        yield
        torch.cuda.synchronize()


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> Ops:
    if REHEARSED:
        through_the_dispatcher(monkeypatch)
    return backend()


_shape = LayerShape(4, 2, 64, batch=3, seq_len=101, page_size=8, dtype=torch.bfloat16, device=DEVICE)
_bodies = load("experiments/test_replay.py", record=record, SHAPE=_shape)
globals().update(
    {
        name: body
        for name, body in bodies_of(_bodies).items()
        if name
        in (
            "test_replays_go_on_as_eager_steps_do",
            "test_an_arm_over_shared_pages_attends_as_one_of_its_own",
        )
    }
)


def moved(paged: Paged) -> Paged:
    return Paged(*(x.to(DEVICE) for x in paged))


@pytest.mark.parametrize("group", [1, 4])
def test_lengths_tables_and_queries_may_change_in_place(ops: Ops, group: int) -> None:
    store = make_store([300, 0, 1, 65], heads=2, dim=64, page_size=16, dtype=torch.float16)
    store.page_table.clamp_(max=store.k_pages.shape[0] - 1)  # a longer row must find pages that exist
    for stored in (store.k_pages, store.v_pages, store.bounds):
        stored.nan_to_num_(0.0)
    q = make_query(store, group).to(DEVICE)
    paged = moved(store.paged)
    table, lengths = paged.table, paged.lengths
    choice = {"count": 5, "width": 5, "force_newest": True, "merge": "sum_softmax"}
    row_counts = torch.tensor([3, 1, 1, 2], dtype=torch.int32, device=DEVICE)
    outputs: list[torch.Tensor] = []

    def step() -> None:
        outputs.clear()
        scores = ops.score(q, paged, skip_newest=True)
        options = {"width": 6, "force_newest": True, "merge": "none", "group": group}
        pages, counts = ops.select(scores, lengths, 16, row_counts, **options)
        outputs.extend(
            [
                ops.attend(q, paged, 0.125),
                ops.attend(q, paged, 0.125, pages=pages, counts=counts),
                ops.attend_top(q, paged, 0.125, **choice),
                pages,
                counts,
            ]
        )

    step()
    replay = record(step)
    recorded = list(outputs)
    for seed, now in enumerate(([300, 0, 1, 65], [17, 300, 33, 0], [1, 16, 301, 320], [0, 0, 0, 0])):
        q.copy_(make_query(store, group, seed=seed + 10))
        lengths.copy_(torch.tensor(now, dtype=torch.int32))
        order = torch.randperm(table.shape[1], generator=torch.Generator().manual_seed(seed))
        table.copy_(table[:, order.to(DEVICE)].clone())
        row_counts.copy_(torch.tensor([1 + seed, 2, 6, 4], dtype=torch.int32))
        replay()
        replayed = [tensor.clone() for tensor in recorded]
        step()
        for a, b in zip(replayed, outputs, strict=True):
            assert torch.equal(a, b)


def test_a_replay_twice_gives_the_same(ops: Ops) -> None:
    """Counters and scratch that kernels keep between launches are put back by the launch itself."""
    store = make_store([5000, 17, 2048], heads=2, dim=128, page_size=16, dtype=torch.bfloat16)
    q = make_query(store, 4).to(DEVICE)
    paged = moved(store.paged)
    outputs: list[torch.Tensor] = []
    ops.attend(q, paged, 0.1)
    replay = record(lambda: outputs.append(ops.attend(q, paged, 0.1)))
    first = outputs[0].clone()
    for _ in range(20):
        outputs[0].fill_(torch.nan)
        replay()
        assert torch.equal(outputs[0], first)
