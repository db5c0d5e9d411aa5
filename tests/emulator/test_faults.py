"""The block emulator shows what is wrong with a kernel (``faults.cu``): by an error that names the place, or by results
that differ under some schedule."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
SEEDS = range(12)
X = torch.arange(256, dtype=torch.float32) + 1


def outcomes(module: Any, launch: Callable[[Tensor], None], size: int) -> list[Tensor]:
    """The results under every schedule; NaN where nothing was written."""
    results = []
    for seed in SEEDS:
        out = torch.full((size,), torch.nan)
        module.emulator_set_seed(seed)
        launch(out)
        results.append(out)
    return results


def always(results: list[Tensor], want: Tensor) -> bool:
    return all(torch.equal(result, want) for result in results)


def test_a_missing_barrier_between_write_and_read_shows(faults: Any) -> None:
    want = X[:64].flip(0)
    assert always(outcomes(faults, lambda out: faults.mirror(X, out, True), 64), want)
    wrong = outcomes(faults, lambda out: faults.mirror(X, out, False), 64)
    # Under every schedule some thread reads what nobody has written yet, and that is NaN.
    assert all(result.isnan().any() for result in wrong)


def test_a_missing_barrier_between_read_and_write_shows(faults: Any) -> None:
    want = X[:64].roll(-5)
    assert always(outcomes(faults, lambda out: faults.turn(X, out, 5, True), 64), want)
    wrong = outcomes(faults, lambda out: faults.turn(X, out, 5, False), 64)
    assert sum(not torch.equal(result, want) for result in wrong) >= len(SEEDS) // 2


RIGHT, NO_WAIT, NO_COMMIT, WAIT_FOR_OLDER, NO_BARRIER = range(5)


@pytest.mark.parametrize("copying", [NO_WAIT, NO_COMMIT, WAIT_FOR_OLDER, NO_BARRIER])
def test_a_copy_that_nobody_waits_for_shows(faults: Any, copying: int) -> None:
    assert always(outcomes(faults, lambda out: faults.copy(X, out, RIGHT), 256), X)
    wrong = outcomes(faults, lambda out: faults.copy(X, out, copying), 256)
    assert wrong[0].isnan().any(), "copies land as late as they may under the schedule in order"
    assert sum(result.isnan().any().item() for result in wrong) > len(SEEDS) // 2


def test_a_last_block_by_number_shows(faults: Any) -> None:
    def launch(out: Tensor) -> None:
        faults.last_block(X[:8], torch.full((8,), torch.nan), out)

    results = outcomes(faults, launch, 1)
    assert results[0].item() == X[:8].sum().item()
    assert any(result.isnan().item() for result in results)


@pytest.mark.parametrize("blocks", [1, 64])
def test_a_count_without_atomics_shows(faults: Any, blocks: int) -> None:
    for atomically in (True, False):
        counts = []
        for seed in SEEDS:
            out = torch.zeros(1, dtype=torch.int32)
            faults.emulator_set_seed(seed)
            faults.count(out, blocks, atomically)
            counts.append(int(out.item()))
        assert (set(counts) == {64}) == atomically


MISTAKES = {
    "divergent barrier": r"the block diverges: .*__syncthreads at faults.cu:\d+.*thread \(\d+, 0, 0\).*faults.cu:\d+",
    "barrier in one warp": r"thread \(32, 0, 0\) and 30 more wait for lanes 0xffffffff at faults.cu:\d+; "
    r"thread \(40, 0, 0\) wait in __syncthreads at faults.cu",
    "lane outside of mask": r"lane \d+ is not in the mask 0x0000ffff",
    "lanes in different votes": r"the warp diverges: .*0x[0-9a-f]{8}",
    "lane never comes": r"nothing can go on: thread \(3, 0, 0\).* wait for lanes 0x00000018 .*thread \(0, 0, 0\)",
    "ends before others": None,
    "writes above shared": r"written above the 1024 bytes",
    "writes below shared": r"written below the 1024 bytes",
    "struct too large": r"2048 bytes of shared memory are used, the launch asked for 1024",
    "misaligned load": r"load_global: 0x[0-9a-f]+ is not aligned to 16 bytes",
    "copy outside of shared": r"goes outside of shared memory: byte 1024 of 1024",
    "null pointer": r"thread \(5, 0, 0\): illegal memory access at address \(?(0x0|nil)",
    "partial multiply": r"needs all 32 lanes|nothing can go on|the warp diverges",
    "endless stack": r"illegal memory access",
}


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(faults: Any, name: str, seed: int) -> None:
    which = list(MISTAKES).index(name)
    memory = torch.zeros(16)
    out = memory[-memory.data_ptr() // 4 % 4 :]
    faults.emulator_set_seed(seed)
    expected = MISTAKES[name]
    if expected is None:
        faults.mistake(which, out)
        assert out[0].item() == 1
        return
    with pytest.raises(RuntimeError) as caught:
        faults.mistake(which, out)
    message = str(caught.value)
    assert re.search(r"kernel mistake_kernel\(int, float\*\), block \(0, 0, 0\)", message), message
    assert re.search(expected, message, re.S), message
    # The next launch starts afresh.
    assert always(outcomes(faults, lambda out: faults.copy(X, out, RIGHT), 256), X)


@pytest.mark.parametrize(
    ("grid", "threads", "shared", "message"),
    [
        (0, 32, 0, "a grid of 0"),
        (1, 0, 0, "a block of 0 threads"),
        (1, 1025, 0, "a block of 1025 threads"),
        (1, 32, 228 * 1024, "bytes of shared memory"),
    ],
)
def test_launches_that_no_device_takes_are_refused(
    faults: Any, grid: int, threads: int, shared: int, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        faults.shape(grid, threads, shared, torch.zeros(1, dtype=torch.int32))


def test_schedules_repeat(faults: Any) -> None:
    first = outcomes(faults, lambda out: faults.turn(X, out, 5, False), 64)
    second = outcomes(faults, lambda out: faults.turn(X, out, 5, False), 64)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({tuple(result.tolist()) for result in first}) > 1
