"""Calls that break the contract of the ops, one fault each, for every compiled backend.

A case changes one argument of a call that is right. Faults of shape, type or stride are refused always; faults of value
where values are checked, as they are in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from kernel_cases import Store, make_query, make_store, random_lists
from torch import Tensor

Call = dict[str, Any]
Fault = Callable[[Any], Any]

ROWS, HEADS, GROUP, DIM, SIZE, LENGTHS = 2, 2, 2, 64, 16, [40, 20]
SLOTS = 128


def store(by_channel: bool = False) -> Store:
    held = make_store(LENGTHS, heads=HEADS, dim=DIM, page_size=SIZE, dtype=torch.bfloat16, by_channel=by_channel)
    held.page_table = held.page_table.clamp(max=held.k_pages.shape[0] - 1)
    return held


def _slots(dtype: torch.dtype) -> Tensor:
    return torch.zeros((ROWS, HEADS, SLOTS), dtype=dtype)


def calls() -> dict[str, Call]:
    """One right call of every op, by its arguments' names."""
    held, channel = store(), store(by_channel=True)
    stored: Call = {"paged": held.paged}
    new = torch.ones((ROWS, HEADS, 1, DIM), dtype=torch.bfloat16)
    q, (pages, counts) = make_query(held, GROUP), random_lists(held, HEADS, 2)
    positions = torch.arange(SLOTS, dtype=torch.int32).expand(ROWS, HEADS, -1).contiguous()
    choice: Call = {"count": 2, "width": 2, "force_newest": True, "merge": "sum_softmax"}
    attended: Call = {"q": q, **stored, "scale": 0.1}
    listed: Call = {**attended, "pages": pages, "counts": counts}
    recorded: Call = {"mass": _slots(torch.float32), "mass_mode": "sum", "visits": _slots(torch.int32)}
    per_row = torch.tensor([2, 1], dtype=torch.int32)
    scores = torch.randn((ROWS, HEADS * GROUP, held.page_table.shape[1]))
    codes: Call = {"codes": torch.zeros((ROWS, HEADS, SLOTS, DIM // 2), dtype=torch.uint8)}
    codes["ranges"] = torch.ones((ROWS, HEADS, SLOTS, 2))
    lists: Call = {"lengths": held.lengths, "page_size": SIZE, "pages": pages, "counts": counts}
    return {
        "append": {"k": new, "v": new.clone(), **stored, "new": per_row.clamp(max=1)},
        "score": {"q": q, **stored, "skip_newest": True},
        "score by channel": {"q": q, "paged": channel.paged, "skip_newest": True},
        "select": {
            "scores": scores,
            "lengths": held.lengths,
            "page_size": SIZE,
            **choice,
            "group": GROUP,
        },
        "select per row": {"scores": scores, "lengths": held.lengths, "page_size": SIZE, **choice, "count": per_row},
        "attend": {**attended, **recorded, "sinks": torch.zeros(HEADS * GROUP), "prefix_q": q.clone(), "prefix": 3},
        "attend lists": {**listed, **recorded},
        "attend tokens": {
            **attended,
            **recorded,
            "tokens": torch.tensor([[[0, 7, 19]] * HEADS] * ROWS, dtype=torch.int32),
            "counts": torch.full((ROWS, HEADS), 3, dtype=torch.int32),
            "lse": torch.zeros((ROWS, HEADS * GROUP)),
        },
        "attend_top": {**attended, **choice, "visits": _slots(torch.int32)},
        "evict": {
            **stored,
            "positions": positions,
            "mass": _slots(torch.float32),
            "capacity": LENGTHS[0] - 1,
            "sinks": 2,
            "recent": 2,
            "shared": False,
        },
        "quantize": {**stored, **codes, "incoming": 2, "new": per_row},
        "estimate": {"q": q, **codes, **lists, "scale": 0.1},
        "prune": {"logits": torch.randn((ROWS, HEADS * GROUP, pages.shape[2] * SIZE)), **lists, "p": 0.9},
    }


def wider(tensor: Tensor) -> Tensor:
    """The same values in a view whose last dimension is strided."""
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def short(axis: int) -> Fault:
    """One less along an axis."""
    return lambda tensor: tensor.narrow(axis, 0, tensor.shape[axis] - 1).contiguous()


def to(dtype: torch.dtype) -> Fault:
    return lambda tensor: tensor.to(dtype)


def holding(value: int) -> Fault:
    """The first value is another."""

    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone(memory_format=torch.contiguous_format)
        changed.view(-1)[0] = value
        return changed

    return change


def flat(tensor: Tensor) -> Tensor:
    return tensor.flatten()


def instead(value: Any) -> Fault:
    return lambda _: value


def backwards(tensor: Tensor) -> Tensor:
    return tensor[..., :2].flip(-1).contiguous()


FAULTS: dict[str, dict[str, list[Fault]]] = {
    "append": {
        "k": [to(torch.float32), short(0), short(1), short(3), flat],
        "v": [to(torch.float32), to(torch.float16), short(1), short(2), short(3)],
        "k_pages": [to(torch.float16), wider, short(0), short(2)],
        "v_pages": [to(torch.float32), wider, short(0), short(1), short(2), short(3)],
        "bounds": [to(torch.float32), wider, short(0), short(1), short(2)],
        "page_table": [to(torch.int64), wider, short(0), flat, holding(1 << 20), holding(-1)],
        "lengths": [to(torch.int64), wider, short(0), holding(1 << 20), holding(-3)],
        "new": [to(torch.int64), short(0), holding(2), holding(-1)],
    },
    "score": {
        "q": [to(torch.float32), short(0), short(1), short(2), flat],
        "bounds": [to(torch.float32), wider, short(2), short(3), flat],
        "page_table": [to(torch.int64), wider, short(0), flat, holding(1 << 20)],
        "lengths": [to(torch.int64), wider, short(0), holding(1 << 20)],
    },
    "score by channel": {
        "bounds": [to(torch.float16), wider, short(2), short(3), short(4)],
        "skip_newest": [instead(False)],
    },
    "select": {
        "scores": [to(torch.float16), to(torch.float64), short(1), flat],
        "lengths": [to(torch.int64), wider, short(0), holding(1 << 20)],
        "page_size": [instead(0)],
        "count": [instead(4), instead(-1)],
        "width": [instead(1), instead(-1)],
        "group": [instead(3), instead(0), instead(1024)],
        "merge": [instead("mean")],
    },
    "select per row": {"count": [to(torch.int64), short(0), holding(3), holding(-1)]},
    "attend": {
        "q": [to(torch.float32), short(0), short(1), short(2), flat],
        "k_pages": [to(torch.float16), wider, short(1), short(3)],
        "v_pages": [to(torch.float32), wider, short(0), short(2), short(3)],
        "page_table": [to(torch.int64), short(0), flat, holding(1 << 20)],
        "lengths": [to(torch.int64), wider, holding(1 << 20)],
        "sinks": [to(torch.bfloat16), short(0)],
        "prefix_q": [to(torch.float32), short(0), short(1)],
        "mass": [to(torch.bfloat16), wider, short(0), short(1), lambda mass: mass[:, :, :39].contiguous()],
        "mass_mode": [instead("mean")],
        "visits": [to(torch.int64), wider, short(1), lambda visits: visits[:, :, :39].contiguous()],
    },
    "attend lists": {
        "pages": [to(torch.int64), wider, short(0), instead(None), holding(9), holding(-1), backwards],
        "counts": [to(torch.int64), wider, short(0), short(1), instead(None), holding(9), holding(-1)],
    },
    "attend tokens": {
        "tokens": [to(torch.int64), wider, short(0), instead(None), holding(40), holding(-1), holding(7), backwards],
        "counts": [to(torch.int64), wider, short(1), instead(None), holding(4), holding(-1)],
        "pages": [lambda _: torch.zeros((ROWS, HEADS, 3), dtype=torch.int32)],
        "lse": [to(torch.float64), wider, short(0), short(1), flat],
    },
    "attend_top": {
        "q": [to(torch.float32), short(0), short(1)],
        "bounds": [to(torch.float32), wider, short(0), short(1)],
        "page_table": [to(torch.int64), short(0), holding(1 << 20)],
        "lengths": [to(torch.int64), holding(1 << 20)],
        "count": [instead(4)],
        "width": [instead(1)],
        "merge": [instead("mean")],
        "visits": [to(torch.int64), short(1)],
    },
    "evict": {
        "k_pages": [to(torch.float16), wider],
        "v_pages": [to(torch.float32), short(2)],
        "page_table": [to(torch.int64), short(0), holding(1 << 20)],
        "lengths": [to(torch.int64), wider, short(0)],
        "positions": [to(torch.int64), wider, short(1), lambda places: places[:, :, :39].contiguous()],
        "mass": [to(torch.float64), wider, short(0), lambda mass: mass[:, :, :39].contiguous()],
        "capacity": [instead(-1)],
        "recent": [instead(100), instead(-1)],
    },
    "quantize": {
        "k_pages": [wider, to(torch.float64)],
        "page_table": [to(torch.int64), short(0), holding(1 << 20)],
        "lengths": [to(torch.int64), wider, short(0), holding(1 << 20), holding(-1)],
        "codes": [to(torch.int32), wider, short(0), short(1), short(2), short(3)],
        "ranges": [to(torch.float64), wider, short(0), short(2), short(3)],
        "incoming": [instead(-1)],
        "new": [to(torch.int64), short(0), holding(3), holding(-1)],
    },
    "estimate": {
        "q": [short(0), short(1), flat],
        "codes": [to(torch.int32), wider, short(1), short(3), lambda codes: codes[:, :, :39].contiguous()],
        "ranges": [to(torch.float64), short(1), short(2)],
        "lengths": [to(torch.int64), short(0), holding(-1)],
        "page_size": [instead(0)],
        "pages": [to(torch.int64), wider, short(0), holding(9), holding(-1), backwards],
        "counts": [to(torch.int64), short(1), holding(9), holding(-1)],
    },
    "prune": {
        "logits": [to(torch.float64), short(0), short(1), short(2), flat],
        "lengths": [to(torch.int64), short(0), holding(-1)],
        "page_size": [instead(0)],
        "pages": [to(torch.int64), short(0), holding(9), backwards],
        "counts": [to(torch.int64), short(0), holding(9)],
        "p": [instead(-0.1), instead(1.1), instead(float("nan"))],
    },
}
"""Call -> argument -> what is done to it."""

FIELDS = {"k_pages": "k", "v_pages": "v", "page_table": "table", "lengths": "lengths", "bounds": "bounds"}
"""What messages call the tensors of a store."""
CASES = [
    (call, name, index)
    for call, named in FAULTS.items()
    for name, faults in named.items()
    for index in range(len(faults))
]


def broken(call: str, name: str, index: int) -> Call:
    """The arguments of a call with one fault in them."""
    right, fault = calls()[call], FAULTS[call][name][index]
    if name not in FIELDS or "paged" not in right:
        return {**right, name: fault(right.get(name))}
    paged = right["paged"]
    return {**right, "paged": paged._replace(**{FIELDS[name]: fault(getattr(paged, FIELDS[name]))})}
