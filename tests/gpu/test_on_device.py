"""The adapter that takes CPU tensors to a device: strides, aliases, writes and what lies between must survive the trip.

Not marked gpu: it is tested on the CPU, against the same calls without it.
"""

from __future__ import annotations

import pytest
import torch
from gpu_bodies import OnDevice, promised
from kernel_cases import check_attend, generator, make_query, make_store, random_lists
from kernel_checks import check_append, entries, shuffled_positions

from questbench.kernels._ops import Ops
from questbench.kernels.reference import ReferenceOps


@pytest.fixture
def ops() -> Ops:
    return OnDevice(ReferenceOps(), "cpu")


def test_writes_come_back(ops: Ops) -> None:
    store = make_store([20, 0, 9], heads=2, dim=64, page_size=8, dtype=torch.float16)
    store.page_table = torch.arange(store.page_table.numel(), dtype=torch.int32).view(3, -1)
    check_append(ops, store, *entries(store, 3))
    check_append(ops, store, *entries(store, 4), torch.tensor([4, 0, 1], dtype=torch.int32))


def test_views_travel_with_what_they_are_views_of(ops: Ops) -> None:
    store = make_store([70, 3], heads=2, dim=64, page_size=16, dtype=torch.bfloat16)
    assert store.page_table.stride(0) > store.page_table.shape[1]
    q = torch.randn((2, 3, 4, 64), generator=generator(3)).bfloat16()[:, 1]
    visits, mass = torch.zeros((2, 2, 80), dtype=torch.int32), torch.zeros((2, 2, 80))
    pages, counts = random_lists(store, 2, 2)
    record = {"mass": mass, "mass_mode": "sum", "visits": visits, "pages": pages, "counts": counts}
    out = ops.attend(q, store.paged, 0.1, **record)
    assert torch.equal(out, ReferenceOps().attend(q, store.paged, 0.1, pages=pages, counts=counts))
    assert visits.sum() > 0 and mass.sum() > 0
    check_attend(ops, store, make_query(store, 2), 0.1)


def test_one_tensor_given_twice_is_one_tensor_there() -> None:
    seen = []

    class Look(ReferenceOps):
        def attend(self, q, paged, *rest, **options):
            seen.append(paged.k.data_ptr() == paged.v.data_ptr())
            return super().attend(q, paged, *rest, **options)

    store = make_store([20], heads=2, dim=64, page_size=8, dtype=torch.float16)
    look = OnDevice(Look(), "cpu")
    look.attend(make_query(store, 1), store.paged._replace(v=store.k_pages), 0.1)
    assert seen == [True]


def test_evict_comes_back_too(ops: Ops) -> None:
    store = make_store([38, 37, 5, 38], heads=2, dim=64, page_size=8, dtype=torch.float16)
    positions = shuffled_positions(True, 1)
    rule = {"capacity": 37, "sinks": 0, "recent": 0, "shared": True}
    ops.evict(store.paged, positions, None, **rule)
    assert store.lengths.tolist() == [37, 37, 5, 37]


@pytest.mark.parametrize(
    ("shape", "beyond"),
    [
        ({"dtype": torch.float32}, "float32"),
        ({"dim": 96}, "96"),
        ({"page_size": 128}, "128"),
        ({"group": 17}, "groups of 17"),
    ],
)
def test_what_is_not_promised_is_skipped_with_a_reason(shape: dict, beyond: str) -> None:
    with pytest.raises(pytest.skip.Exception, match=beyond):
        promised(**shape)
    promised(dtype=torch.float16, dim=128, page_size=16, group=16)
