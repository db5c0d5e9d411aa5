"""Vectors of the CPU kernels stay in registers, and who shares a block of them changes no bit."""

from __future__ import annotations

import platform
import re
import subprocess

import pytest
import torch
from kernel_cases import make_query, make_store

from questbench import kernels
from questbench._paths import kernel_sources
from questbench.kernels import _build
from questbench.kernels.cpu import CpuOps

SUM_OF_EXPONENTIALS = """
#include "questbench/vector.h"
using namespace questbench;
float sum_of_exponentials(const float* x, int n) {
  Vec sum = {};
  for (int i = 0; i < n; i += kLanes) sum += exp_of(load(x + i));
  return sum_of(sum);
}
"""


@pytest.fixture(autouse=True)
def compiled() -> None:
    if reason := CpuOps().unavailable():
        pytest.skip(reason)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_a_vector_does_not_pass_through_general_registers(isa: str) -> None:
    """GCC does that with vectors wider than the processor's, at five times the cost of the arithmetic."""
    flags = [*_build.COMMON_FLAGS, *_build.ISA_FLAGS[isa], f"-I{kernel_sources() / 'include'}"]
    command = [*_build.compiler().command, *flags, "-S", "-x", "c++", "-o", "-", "-"]
    text = subprocess.run(command, input=SUM_OF_EXPONENTIALS, capture_output=True, text=True, check=True).stdout
    assert "mulps" in text or "fmadd" in text
    assert not re.findall(r"\bv?pinsrq\b", text)


@pytest.mark.parametrize("dim", [64, 72])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_head_is_alone_what_it_is_in_a_group(dtype: torch.dtype, dim: int) -> None:
    ops = kernels.load("cpu")
    store = make_store([37, 5, 0, 1], heads=1, dim=dim, page_size=16, dtype=dtype)
    q = make_query(store, 13)
    whole, scores = ops.attend(q, store.paged, 0.1), ops.score(q, store.paged, skip_newest=False)
    for group in (*range(1, 10), 12):
        part = q[:, 13 - group :].contiguous()
        assert torch.equal(ops.attend(part, store.paged, 0.1), whole[:, 13 - group :])
        assert torch.equal(ops.score(part, store.paged, skip_newest=False), scores[:, 13 - group :])
