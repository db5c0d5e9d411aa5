"""The size of the last-level cache from a made-up /sys, and the buffers that measurements read."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

from questbench._memory import HUGE, empty
from questbench.measure import memory


def describe(folder: Path, cpu: int, caches: list[tuple[str, int, str, str]]) -> None:
    for index, (kind, level, shared, size) in enumerate(caches):
        place = folder / f"cpu{cpu}" / "cache" / f"index{index}"
        place.mkdir(parents=True)
        for name, text in zip(("type", "level", "shared_cpu_list", "size"), (kind, level, shared, size), strict=True):
            (place / name).write_text(f"{text}\n")


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)


@pytest.mark.usefixtures("four_cpus")
def test_caches_of_all_cores_are_added_up(tmp_path: Path) -> None:
    for cpu in range(8):
        shared = f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}"
        describe(
            tmp_path,
            cpu,
            [
                ("Data", 1, str(cpu), "48K"),
                ("Instruction", 1, str(cpu), "32K"),
                ("Unified", 2, str(cpu), "1024K"),
                ("Unified", 3, shared, "16384K"),
            ],
        )
    assert memory.last_level_cache_bytes(cpus=tmp_path) == 2 * (16 << 20), "4 of 8 cores, 2 cores per cache"


@pytest.mark.usefixtures("four_cpus")
def test_unknown_caches_fall_back(tmp_path: Path) -> None:
    assert memory.last_level_cache_bytes(cpus=tmp_path) == memory.FALLBACK_BYTES
    describe(tmp_path, 0, [("Unified", 3, "0-3", "unknown")])
    assert memory.last_level_cache_bytes(cpus=tmp_path) == memory.FALLBACK_BYTES
    describe(tmp_path, 1, [("Unified", 2, "1", "2M")])
    assert memory.last_level_cache_bytes(cpus=tmp_path) == 2 << 20


def test_this_machine_has_a_cache() -> None:
    assert memory.last_level_cache_bytes() >= 1 << 16


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int32, torch.uint8]
)
@pytest.mark.parametrize("size", [0, 3, 5 << 20])
def test_buffers_are_zeroed_and_writable(dtype: torch.dtype, size: int) -> None:
    shape = (size // dtype.itemsize, 1)
    data = empty(shape, dtype)
    assert data.shape == shape and data.dtype == dtype and data.is_contiguous()
    assert not data.any()
    data.fill_(1)
    assert bool((data == 1).all())


def test_large_buffers_are_aligned_and_live_as_long_as_their_last_view() -> None:
    data = empty((6 << 20,), torch.uint8)
    assert data.data_ptr() % HUGE == 0
    view = data[4 << 20 :].view(torch.bfloat16)[:7]
    view.fill_(2.0)
    del data
    gc.collect()
    others = [empty((6 << 20,), torch.uint8).fill_(9) for _ in range(4)]
    assert len(others) == 4 and view.tolist() == [2.0] * 7


@pytest.mark.gpu
def test_second_level_cache_of_a_gpu() -> None:
    assert memory.last_level_cache_bytes("cuda") >= 1 << 20
