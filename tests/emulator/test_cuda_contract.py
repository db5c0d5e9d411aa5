"""The CUDA binding holds calls to the same contract as that of the CPU, with the limits of its own kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract_cases import CASES, broken, calls
from emulated import watched
from kernel_cases import make_store

from questbench.kernels import _build_cuda


@pytest.fixture(scope="module")
def once() -> Any:
    """The CUDA backend in the emulator as it is: what watches it would copy strided tensors."""
    return watched(_build_cuda.load_emulator())._inner


@pytest.mark.parametrize("call", calls())
def test_right_calls_pass(once: Any, call: str) -> None:
    getattr(once, call.split()[0])(**calls()[call])


@pytest.mark.parametrize(("call", "name", "index"), CASES)
def test_a_broken_call_is_refused(once: Any, call: str, name: str, index: int) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(once, call.split()[0])(**broken(call, name, index))
    assert len(str(caught.value)) > 15


def test_shapes_beyond_the_kernels_are_refused(once: Any) -> None:
    group = calls()["score"]
    group["q"] = torch.zeros((2, 34, 64), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="the CUDA kernels have groups of 1 to 16"):
        once.score(**group)
    thirds = make_store([40, 20], heads=2, dim=64, page_size=48, dtype=torch.bfloat16)
    thirds.page_table.clamp_(max=1)
    with pytest.raises(ValueError, match="page sizes 4, 8"):
        once.attend(**{**calls()["attend"], "paged": thirds.paged})
