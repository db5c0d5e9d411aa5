"""FlashInfer over an interface that keeps what FlashInfer documents: plans, page ids, lengths.

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
from kernel_cases import check_attend, make_query, make_store, random_lists
from lists import attend

from questbench import baselines, kernels
from questbench._noise import Noise
from questbench.baselines import flashinfer
from questbench.baselines._base import Text
from questbench.baselines._steps import Heads
from questbench.cache import LayerCache
from questbench.errors import UsageError
from questbench.kernels import _build_cuda
from questbench.methods.dense import Dense

HALVES = (torch.float16, torch.bfloat16)
REAL = flashinfer.library
FILLED = [300, 64, 1, 17]


@pytest.fixture(autouse=True)
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashinfer, "library", lambda: LIBRARY)
    monkeypatch.setattr(flashinfer, "WORKSPACE_BYTES", 1 << 10)
    flashinfer.workspace.cache_clear()


class Lists:
    """FlashInfer in the place of a backend's ``attend``."""

    attend = staticmethod(attend)


@pytest.mark.parametrize("group", [1, 4, 5, 8])
@pytest.mark.parametrize("page_size", [8, 16, 64])
def test_dense_and_both_kinds_of_lists(page_size: int, group: int) -> None:
    dtype = HALVES[group % 2]
    store = make_store(FILLED, heads=2, dim=64, page_size=page_size, dtype=dtype, seed=group)
    q = make_query(store, group)
    check_attend(Lists(), store, q, 0.125)
    for heads in (2, 2 * group):
        pages, counts = random_lists(store, heads, 7)
        check_attend(Lists(), store, q, 0.125, pages=pages, counts=counts.clamp(min=1))


def text_of(group: int, page_size: int, copies: int = 2, held: int = 300, dtype: torch.dtype = torch.float16) -> Text:
    noise = Noise(2, 2, 64, dtype, "cpu", torch.Generator().manual_seed(0))
    queries = torch.randn((3, 2, 2 * group, 64)).to(dtype)

    def pages() -> list[LayerCache]:
        shape = {"rows": 2, "kv_heads": 2, "head_dim": 64, "page_size": page_size, "dtype": dtype}
        layers = [LayerCache(Dense(), kernels.load("reference"), **shape) for _ in range(copies)]
        for layer in layers:
            for k, v in noise.parts(held):
                layer.append(k, v)
        return layers

    return Text(queries, noise, held, copies, pages)


@pytest.mark.parametrize("group", [4, 5])
@pytest.mark.parametrize("page_size", [8, 16])
def test_every_path_gives_the_same_and_the_others_say_why_not(page_size: int, group: int) -> None:
    text = text_of(group, page_size)
    ways = baselines.load("flashinfer").ways(text)
    missing = {"xqa"} if page_size == 8 else set()
    missing |= {"cuda-core"} if group == 5 else set()
    assert set(ways.left_out) == missing and all(ways.left_out.values())
    assert set(ways.arms) == {"cuda-core", "tensor-core", "xqa"} - missing
    layer = text.pages()[0]
    want = layer.ops.attend(text.queries[0], layer.paged, text.scale)
    for arm in ways.arms.values():
        assert arm.copies == 2
        for _ in range(2):  # whichever copy's turn it is
            assert torch.allclose(arm.step(0), want, atol=2e-3)


def test_what_it_has_no_kernels_for_is_refused() -> None:
    text = text_of(1, 16, dtype=torch.float32)
    assert not (ways := baselines.load("flashinfer").ways(text)).arms
    assert "no decode kernels for float32 heads of 64" in ways.left_out["xqa"]


def test_planned_paths_refuse_an_empty_row() -> None:
    heads = Heads(4, 2, 64, 8, torch.float16, 0.1)
    with pytest.raises(ValueError, match="no empty rows"):
        flashinfer.make("cuda-core", torch.zeros((2, 4), dtype=torch.int32), heads, [30, 0])


def test_it_is_no_backend_and_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="is a baseline, not a backend") as caught:
        kernels.load_class("flashinfer")
    assert "Leave --backend out" in str(caught.value.hint)


def test_it_says_why_it_does_not_work_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashinfer, "library", REAL)
    there = flashinfer.FlashInfer()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'questbench[flashinfer]'" in str(there.unavailable())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no" in str(there.unavailable()) and "CUDA device" in str(there.unavailable())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    REAL.cache_clear()
    assert "cannot be imported" in str(there.unavailable())
    REAL.cache_clear()


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
    REAL.cache_clear()
    assert REAL() == (named or "/usr/local/cuda-13.0")
    REAL.cache_clear()
