"""Every kernel compiles for every target, spills nothing, and uses no more registers, shared memory or stack than the
committed budget of this nvcc says. Rewrite it with ``python tests/emulator/compile_budget.py --update``."""

from __future__ import annotations

import warnings
from pathlib import Path

import compile_budget as budget
import pytest

from questbench.kernels import _build_cuda

KIT = _build_cuda.toolkit()


@pytest.mark.skipif(KIT is None, reason="no nvcc here")
@pytest.mark.parametrize("target", _build_cuda.TARGETS)
@pytest.mark.parametrize("source", budget.sources(), ids=lambda source: source.name)
def test_kernels_compile_within_their_budget(source: Path, target: str) -> None:
    """One by one, so that processes that share the tests share the compilations too."""
    kit = KIT
    assert kit is not None
    try:
        measured = budget.measure(kit, source, target)
    except budget.CompileError as error:
        pytest.fail(str(error))
    known = budget.committed().get(kit.version)
    if known is None:
        shown = budget.describe({source.name: {target: measured}})
        warnings.warn(f"nvcc {kit.version} has no budget yet:\n{shown}", stacklevel=1)
        return
    assert budget.exceeded(measured, known.get(source.name, {}).get(target, {})) == []


def test_the_budget_names_no_source_that_is_gone() -> None:
    names = {source.name for source in budget.sources()}
    assert all(set(known) <= names for known in budget.committed().values())


REPORT = """\
ptxas info    : 8 bytes gmem
ptxas info    : Compiling entry function '_Z1aIN2qb6half_tEEvPKT_' for 'sm_80'
ptxas info    : Function properties for _Z1aIN2qb6half_tEEvPKT_
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Function properties for helper
    99 bytes stack frame, 99 bytes spill stores, 99 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 16 bytes cumulative stack size, 2048 bytes smem, 376 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1bv' for 'sm_80'
ptxas info    : Function properties for _Z1bv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""


def test_reports_are_read_and_compared() -> None:
    measured = budget.parse(REPORT)
    first = {"registers": 96, "shared": 2048, "stack": 16, "spills": 20}
    second = {"registers": 8, "shared": 0, "stack": 0, "spills": 0}
    assert list(measured.values()) == [first, second]
    a, b = measured
    assert budget.exceeded({b: second}, {b: second}) == []
    assert budget.exceeded({b: second}, {b: {**second, "registers": 9}}) == []
    assert budget.exceeded({b: second}, {b: {**second, "registers": 7}}) == [f"{b}: registers 8, budget 7"]
    assert budget.exceeded({a: first}, {a: first}) == [f"{a} spills 20 bytes"]
    assert budget.exceeded({b: second}, {}) == [f"{b} is not in the budget"]
    assert budget.exceeded({}, {b: second}) == [f"{b} is in the budget but not compiled"]


@pytest.mark.parametrize("damage", ["Used ", "bytes stack frame"])
def test_a_report_that_cannot_be_read_is_an_error(damage: str) -> None:
    with pytest.raises(ValueError, match="ptxas tells only"):
        budget.parse(REPORT.replace(damage, "?"))
