"""Calls that break the contract are refused by name, never followed; right ones pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract_cases import CASES, DIM, HEADS, broken, calls, store
from kernel_cases import make_query

from questbench import kernels
from questbench.kernels import _values
from questbench.kernels._native import functions
from questbench.kernels._ops import Ops
from questbench.kernels.cpu import _Library


@pytest.fixture
def bare(ops: Any) -> Any:
    """The backend as it is: what watches it in the emulator would copy strided tensors."""
    return getattr(ops, "_inner", ops)


@pytest.fixture
def cpu() -> Ops:
    return kernels.load("cpu")


def test_the_tests_check_values() -> None:
    assert _values.enabled


@pytest.mark.parametrize("call", calls())
def test_right_calls_pass(bare: Any, call: str) -> None:
    getattr(bare, call.split()[0])(**calls()[call])


def test_there_are_a_hundred_broken_calls() -> None:
    assert len(CASES) >= 100


@pytest.mark.parametrize(("call", "name", "index"), CASES)
def test_a_broken_call_is_refused(bare: Any, call: str, name: str, index: int) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(bare, call.split()[0])(**broken(call, name, index))
    assert len(str(caught.value)) > 15


@pytest.mark.parametrize("checked", [False, True])
def test_lists_too_narrow_for_a_row_are_refused_as_by_the_reference(
    cpu: Ops, checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where values are not checked: what a row asks for must not be cut silently."""
    monkeypatch.setattr(_values, "enabled", checked)
    arguments = {**calls()["select per row"], "count": torch.tensor([3, 1], dtype=torch.int32)}
    for ops in (cpu, kernels.load("reference")):
        with pytest.raises((ValueError, RuntimeError)):
            ops.select(**arguments)
    top = {**calls()["attend_top"], "count": torch.tensor([3, 1], dtype=torch.int32)}
    told = "count holds 3, not 0 to 2" if checked else "lists of 2 pages cannot hold the 3 that row 0 asks for"
    with pytest.raises(ValueError, match=told):
        cpu.attend_top(**top)


def test_mixtures_that_autocast_makes_are_refused(cpu: Ops) -> None:
    held = store()
    k = torch.zeros((2, HEADS, 1, DIM))
    with pytest.raises(TypeError, match=r"append: k is float32 where bfloat16 is stored \(torch\.autocast"):
        cpu.append(k, k.bfloat16(), held.paged)
    wide = held.paged._replace(k=held.k_pages.float(), v=held.v_pages.float(), bounds=None)
    with pytest.raises(TypeError, match="append: v is bfloat16 where float32 is stored"):
        cpu.append(k, k.bfloat16(), wide)


def test_refusals_name_the_tensor_and_what_it_should_be(cpu: Ops) -> None:
    right: dict[str, Any] = calls()["attend"]
    with pytest.raises(ValueError, match=r"attend: q has shape \[2, 4, 63\], not \[B = 2, Hq = 4, D = 64\]"):
        cpu.attend(**{**right, "q": right["q"][..., :63]})
    with pytest.raises(TypeError, match="attend: page_table is int64, not int32"):
        cpu.attend(**broken("attend", "page_table", 0))
    with pytest.raises(ValueError, match="attend: mass is strided"):
        cpu.attend(**{**right, "mass": right["mass"].transpose(1, 2).contiguous().transpose(1, 2)})


def test_without_the_check_values_are_not_read(cpu: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_values, "enabled", False)
    seen: list[Any] = []
    monkeypatch.setattr(_values, "checker", lambda op: seen.append)
    checked = functions(_Library())
    held = store()
    arguments = make_query(held, 1), held.bounds, held.page_table, held.lengths, held.page_size, True
    checked["score"](*arguments)
    assert not seen
    monkeypatch.setattr(_values, "enabled", True)
    checked["score"](*arguments)
    assert len(seen) == 1
