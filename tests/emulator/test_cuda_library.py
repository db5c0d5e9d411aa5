"""The Python side of the CUDA backend: how work is split, what never reaches a device, how kernels begin."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from contract_cases import calls
from kernel_cases import check_attend, empty_store, make_query, make_store
from kernel_checks import check_lse

from questbench._paths import kernel_sources
from questbench.kernels import cuda

SOURCES = sorted((kernel_sources() / "cuda").glob("*.cu"))
H100 = 132, 228 << 10


@pytest.mark.parametrize(("dim", "blocks"), [(64, 3), (128, 2), (256, 1)])
def test_blocks_that_a_multiprocessor_holds(dim: int, blocks: int) -> None:
    assert cuda.resident_blocks(dim, H100[1]) == blocks
    assert cuda.resident_blocks(dim, 16 << 10) == 1


@pytest.mark.parametrize("lists", [1, 8, 32, 64, 256, 300, 1024, 40_000])
@pytest.mark.parametrize("entries", [0, 1, 100, 2048, 32768, 1 << 20])
def test_splits_fill_whole_waves(lists: int, entries: int) -> None:
    places = 2 * H100[0]
    splits = cuda.best_splits(lists, entries, places)
    most = min(cuda.SPLITS_MAX, max(1, math.ceil(entries / (8 * cuda.TILE))))
    assert 1 <= splits <= most
    # Of the places of all waves, how many have a block; a single wave of short lists need not be full.
    waves = math.ceil(lists * splits / places)
    full = lists * splits / (waves * places)
    assert full > 0.85 or splits == most or lists * splits > 7 * places


def test_a_step_over_lists_is_one_wave_and_dense_fills_the_chip() -> None:
    places = 2 * H100[0]
    assert cuda.best_splits(8, 2048, places) == 16
    assert cuda.best_splits(32, 32768, places) == 8
    assert cuda.best_splits(8, 131072, places) * 8 in range(252, places + 1)


def test_constants_are_those_of_the_kernels() -> None:
    text = "\n".join(path.read_text() for path in (*SOURCES, *(kernel_sources() / "cuda").glob("*.h")))
    stages = re.search(r"stages_for\(int dim\) \{ return dim == 64 \? (\d) : dim == 128 \? (\d) : (\d);", text)
    assert stages is not None and tuple(map(int, stages.groups())) == tuple(cuda.STAGES[dim] for dim in (64, 128, 256))
    known = {
        "kCounters": cuda.COUNTERS,
        "kTile": cuda.TILE,
        "kMaxSplits": cuda.SPLITS_MAX,
        "kSharedPages": cuda.SHARED_PAGES,
    }
    for name, value in known.items():
        found = re.findall(rf"\b{name} = ([\d <]+)[;,]", text)
        assert found and all(_value(number) == value for number in found), name


def _value(number: str) -> int:
    base, _, shift = number.partition("<<")
    return int(base) << int(shift or 0)


@pytest.mark.parametrize("source", [path for path in SOURCES if path.stem != "bind"], ids=lambda path: path.stem)
def test_every_kernel_begins_after_the_one_ahead_and_is_launched_so(source: Any) -> None:
    """A kernel that touches memory before, or one that is not launched as a dependent one, would break the chain."""
    text = source.read_text()
    bodies = re.findall(r"QB_KERNEL [^{]*\{\s*((?:constexpr [^;]*;[^\n]*\s*)*)(\S+)", text)
    assert bodies and all(first == "begin_kernel();" for _, first in bodies)
    assert len(re.findall(r"launch_dependent\(", text)) >= 1 and not re.findall(r"(?<![\w])launch\(", text)


def test_queries_of_another_type_or_place_are_refused(ops: Any) -> None:
    store = make_store([20], heads=2, dim=64, page_size=16, dtype=torch.bfloat16)
    q = make_query(store, 1)
    shifted = torch.cat([q.flatten(), q.flatten()[:8]])[1 : 1 + q.numel()].view(q.shape)
    for wrong, error in ((q.half(), "float16 where bfloat16"), (shifted, "multiple of 16 bytes")):
        with pytest.raises((TypeError, ValueError), match=error):
            ops.attend(wrong, store.paged, 0.1)
        with pytest.raises((TypeError, ValueError), match=error):
            ops.score(wrong, store.paged, skip_newest=True)


def test_attention_over_more_splits_than_a_warp_has_lanes(ops: Any) -> None:
    assert cuda.best_splits(2, 5200, 3 * 132) > 32
    store = make_store([5200, 40], heads=1, dim=64, page_size=16, dtype=torch.bfloat16)
    for page in (0, 180, 324):  # the greatest logits stand in the first split, in one beyond the 32nd, in the last
        store.k_pages[int(store.page_table[0, page])] *= 3
    q, sinks = make_query(store, 3), torch.tensor([2.0, -1.0, 9.0])
    check_attend(ops, store, q, 0.125, sinks=sinks)
    check_lse(ops, store, q, 0.125, sinks=sinks)


def test_shapes_beyond_the_kernels_are_refused(ops: Any) -> None:
    wide = calls()["score"]
    wide["q"] = torch.zeros((2, 34, 64), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="the CUDA kernels have groups of 1 to 16"):
        ops.score(**wide)
    thirds = make_store([40, 20], heads=2, dim=64, page_size=48, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="page sizes 4, 8"):
        ops.attend(make_query(thirds, 2), thirds.paged, 0.1)


def test_entries_of_another_type_are_refused(ops: Any) -> None:
    store = empty_store(1, 2, heads=2, dim=64, page_size=16, dtype=torch.bfloat16)
    k = torch.zeros((1, 2, 1, 64), dtype=torch.bfloat16)
    for wrong in ((k.half(), k), (k, k.float())):
        with pytest.raises(TypeError, match="is stored"):
            ops.append(*wrong, store.paged)


def test_without_the_binding_the_backends_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from questbench.errors import PrerequisiteError
    from questbench.kernels import _build, _build_cuda, cpu

    monkeypatch.setattr(_build, "has_binding", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for ops in (cuda.CudaOps(), cpu.CpuOps()):
        assert "pip install apache-tvm-ffi" in str(ops.unavailable())
    for build in (_build.build_cpu, _build_cuda.build_cuda, _build_cuda.build_emulator):
        with pytest.raises(PrerequisiteError, match="apache-tvm-ffi"):
            build()
