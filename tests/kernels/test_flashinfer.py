"""The flashinfer backend over an interface that keeps what FlashInfer documents: views, page ids, lengths, sinks.

FlashInfer itself runs in tests/gpu alone; here it is our side of the interface that is tested.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from fake_flashinfer import LIBRARY
from kernel_cases import (
    REFERENCE,
    ROUNDOFF,
    attend_budget,
    check_attend,
    generator,
    make_query,
    make_store,
    random_lists,
)
from kernel_checks import ragged

from questbench.errors import CellError
from questbench.kernels import _build_cuda, flashinfer
from questbench.kernels._ops import Ops

HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> Ops:
    monkeypatch.setattr(flashinfer, "library", lambda: LIBRARY)
    monkeypatch.setattr(flashinfer, "WORKSPACE_BYTES", 1 << 10)
    flashinfer.workspace.cache_clear()
    return flashinfer.FlashInferOps()


@pytest.mark.parametrize("group", [1, 4, 5, 8])
@pytest.mark.parametrize("page_size", [8, 16, 64])
def test_dense_and_both_kinds_of_lists(ops: Ops, page_size: int, group: int) -> None:
    dtype = HALVES[group % 2]
    store = make_store(ragged(page_size, 1100), heads=2, dim=64, page_size=page_size, dtype=dtype, seed=group)
    q = make_query(store, group)
    check_attend(ops, store, q, 0.125)
    for heads in (2, 2 * group):
        pages, counts = random_lists(store, heads, 7)
        check_attend(ops, store, q, 0.125, pages=pages, counts=counts)


@pytest.mark.parametrize("heads", [0, 2, 8])
def test_softcap_and_sinks(ops: Ops, heads: int) -> None:
    store = make_store([300, 0, 1, 17], heads=2, dim=64, page_size=16, dtype=torch.bfloat16)
    q = make_query(store, 4)
    pages, counts = random_lists(store, heads, 3) if heads else (None, None)
    for softcap in (0.0, 5.0):
        options = {"pages": pages, "counts": counts, "softcap": softcap}
        check_attend(ops, store, q, 0.125, **options)
        options["sinks"] = torch.randn(8, generator=generator(1))
        want = REFERENCE.attend(q.double(), store.wide().paged, 0.125, **options)
        budget = attend_budget(store, q, 0.125, want, **options) + 1.01 * ROUNDOFF[q.dtype] * want.abs()
        assert ((ops.attend(q, store.paged, 0.125, **options).double() - want).abs() <= budget).all()


def test_what_flashinfer_does_not_return_comes_from_the_specification(ops: Ops) -> None:
    store = make_store([100, 0, 33], heads=2, dim=64, page_size=16, dtype=torch.float16)
    q = make_query(store, 2)
    mass, visits = torch.zeros((3, 2, 100)), torch.zeros((3, 2, 100), dtype=torch.int32)
    out = ops.attend(q, store.paged, 0.125, mass=mass, mass_mode="last", visits=visits)
    assert torch.equal(out, ops.attend(q, store.paged, 0.125))
    assert torch.allclose(mass.sum(-1), 2.0 * (store.lengths > 0)[:, None], atol=1e-5)
    assert visits.sum(-1).tolist() == [[200, 200], [0, 0], [66, 66]]
    check_attend(ops, store, q, 0.125, prefix_q=make_query(store, 2, seed=3), prefix=4)


def test_rows_that_are_all_empty(ops: Ops) -> None:
    store = make_store([0, 0], heads=2, dim=64, page_size=16, dtype=torch.float16)
    q = make_query(store, 2)
    assert torch.equal(ops.attend(q, store.paged, 0.125), torch.zeros_like(q))


@pytest.mark.parametrize("group", [4, 5])
@pytest.mark.parametrize("page_size", [8, 16])
def test_every_dense_path_gives_the_same_and_the_others_say_why_not(ops: Ops, page_size: int, group: int) -> None:
    store = make_store([300, 7, 65], heads=2, dim=64, page_size=page_size, dtype=torch.float16)
    q = make_query(store, group)
    store.page_table.clamp_(max=store.k_pages.shape[0] - 1)
    paths, reasons = ops.dense_paths(q, store.paged, 0.125)
    missing = {"xqa"} if page_size == 8 else set()
    missing |= {"cuda-core"} if group == 5 else set()
    assert set(reasons) == missing and all(reasons.values())
    assert set(paths) == {"cuda-core", "tensor-core", "xqa"} - missing
    want = ops.attend(q, store.paged, 0.125)
    for path in paths.values():
        out = torch.full_like(q, torch.nan)
        path(q, store.k_pages, store.v_pages, out)
        assert torch.equal(out, want)


def test_an_empty_row_leaves_the_planned_paths_out(ops: Ops) -> None:
    store = make_store([30, 0], heads=2, dim=64, page_size=8, dtype=torch.float16)
    paths, reasons = ops.dense_paths(make_query(store, 2), store.paged, 0.1)
    assert not paths and "no empty rows" in reasons["cuda-core"]


@pytest.mark.parametrize(("dtype", "dim"), [(torch.float32, 64), (torch.float16, 96)])
def test_what_it_has_no_kernels_for_is_refused(ops: Ops, dtype: torch.dtype, dim: int) -> None:
    store = make_store([30], heads=2, dim=dim, page_size=16, dtype=dtype)
    with pytest.raises(CellError, match="FlashInfer has no decode kernels"):
        ops.attend(make_query(store, 2), store.paged, 0.1)


def test_it_says_why_it_does_not_work_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = flashinfer.FlashInferOps()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'questbench[flashinfer]'" in str(ops.unavailable())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no" in str(ops.unavailable()) and "CUDA device" in str(ops.unavailable())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    flashinfer.library.cache_clear()
    assert "cannot be imported" in str(ops.unavailable())
    flashinfer.library.cache_clear()


@pytest.mark.parametrize("named", [None, "/opt/mine"])
def test_it_compiles_with_the_toolkit_that_our_kernels_are_compiled_with(
    monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    """FlashInfer takes the folder above the nvcc on PATH, which may be a script in /usr/local/bin."""
    kit = _build_cuda.Toolkit(Path("/usr/local/cuda-13.0"), "13.0.88")
    monkeypatch.setattr(flashinfer._build_cuda, "toolkit", lambda: kit)
    monkeypatch.setattr(flashinfer.importlib, "import_module", lambda name: os.environ.get("CUDA_HOME"))
    monkeypatch.setenv("CUDA_HOME", named or "")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    flashinfer.library.cache_clear()
    assert flashinfer.library() == (named or "/usr/local/cuda-13.0")
    flashinfer.library.cache_clear()
