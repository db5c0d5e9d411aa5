"""The block emulator carries out right kernels as CUDA does, under every schedule (``basics.cu``). The same tests run
on a device, where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from on_device import OnDevice
from torch import Tensor

ALL = 0xFFFFFFFF
SEEDS = range(8)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("grid", "block"), [((1, 1, 1), (1, 1, 1)), ((3, 2, 4), (5, 3, 2)), ((2, 1, 1), (1024, 1, 1))])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_thread_of_every_block_runs_once(
    basics: Any, grid: tuple[int, ...], block: tuple[int, ...], seed: int
) -> None:
    threads = grid[0] * grid[1] * grid[2] * block[0] * block[1] * block[2]
    visits = torch.zeros(threads, dtype=torch.int32)
    basics.emulator_set_seed(seed)
    basics.indices(visits, *grid, *block)
    assert visits.tolist() == [1] * threads


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("blocks", "threads", "count"), [(1, 32, 5), (7, 128, 3000), (40, 256, 20000), (3, 1024, 1)])
def test_a_sum_over_the_grid_ends_in_the_last_block(
    basics: Any, seed: int, blocks: int, threads: int, count: int
) -> None:
    x = torch.randint(-50, 50, (count,), generator=generator(count)).float()
    counter, out = torch.zeros(1, dtype=torch.int32), torch.full((1,), torch.nan)
    basics.emulator_set_seed(seed)
    for _ in range(2):
        basics.sum(x, torch.full((blocks,), torch.nan), counter, out, threads)
        assert out.item() == x.sum().item() and counter.item() == 0


def shuffled(values: list[int], argument: list[int], width: int) -> list[int]:
    """What CUDA's documentation says of the four shuffles, one after another."""
    out = [0] * 128
    for lane in range(32):
        first = lane - lane % width
        offset = argument[lane] % 32
        within = {
            0: first + argument[lane] % width,
            1: lane if lane ^ offset >= first + width else lane ^ offset,
            2: lane if lane - offset < first else lane - offset,
            3: lane if lane + offset >= first + width else lane + offset,
        }
        for kind, source in within.items():
            out[32 * kind + lane] = values[source]
    return out


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("seed", [0, 3])
def test_shuffles_follow_the_documentation(basics: Any, width: int, seed: int) -> None:
    values = torch.randint(0, 1000, (32,), generator=generator(width), dtype=torch.int32)
    basics.emulator_set_seed(seed)
    arguments = [torch.full((32,), n, dtype=torch.int32) for n in (0, 1, 5, 16, 31)]
    arguments.append(torch.randint(0, 64, (32,), generator=generator(1), dtype=torch.int32))
    for argument in arguments:
        out = torch.zeros(128, dtype=torch.int32)
        basics.shuffles(values, argument, out, width)
        assert out.tolist() == shuffled(values.tolist(), argument.tolist(), width)


@pytest.mark.parametrize("mask", [ALL, 0x0000FFFF, 0xAAAAAAAA, 0x00000001, 0xF0F00F0F])
@pytest.mark.parametrize("seed", [0, 1, 5])
def test_votes_count_the_lanes_of_the_mask(basics: Any, mask: int, seed: int) -> None:
    basics.emulator_set_seed(seed)
    lanes = [lane for lane in range(32) if mask >> lane & 1]
    for values in ([0] * 32, [7] * 32, [lane % 3 for lane in range(32)]):
        out = torch.zeros(160, dtype=torch.int32)
        basics.votes(torch.tensor(values, dtype=torch.int32), mask, out)
        chosen = [values[lane] for lane in lanes]
        ballot = sum(1 << lane for lane in lanes if values[lane])
        for lane in lanes:
            assert out[lane].item() & ALL == ballot
            assert out[32 + lane].item() == any(chosen) and out[64 + lane].item() == all(chosen)
            assert out[96 + lane].item() == sum(chosen) and out[128 + lane].item() == max(chosen)
        for lane in sorted(set(range(32)) - set(lanes)):
            if lane == 0:
                assert out[lane].item() == values[0]
            elif lane - 1 not in lanes:
                assert out[lane].item() == values[lane - 1]
            elif not isinstance(basics, OnDevice):
                assert out[lane].item() == 0x7FB57FB5, "the value of a lane outside of the mask is not defined"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("through_shared", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_products_of_tensor_cores(basics: Any, dtype: torch.dtype, through_shared: bool, seed: int) -> None:
    a, b = (torch.randn(shape, generator=generator(seed)).to(dtype) for shape in ((16, 16), (16, 8)))
    d = torch.zeros((16, 8)) if through_shared else torch.randn((16, 8), generator=generator(seed + 9))
    want = d.double() + a.double() @ b.double()
    # Products of 16-bit floats are exact; each of the two sums is cut off once.
    budget = 2 * 2.0**-23 * (d.double().abs() + a.double().abs() @ b.double().abs())
    basics.emulator_set_seed(seed)
    basics.multiply(a, b, d, through_shared)
    assert ((d.double() - want).abs() <= budget).all()


def test_products_with_infinity_and_nan(basics: Any) -> None:
    a, b = torch.ones((16, 16)).half(), torch.ones((16, 8)).half()
    a[3, 2], a[4, 5], a[9, 0], b[7, 6] = torch.inf, torch.nan, -torch.inf, torch.inf
    d = torch.zeros((16, 8))
    basics.multiply(a, b, d, False)
    assert torch.equal(d.nan_to_num(12345.0, 777.0, -777.0), (a.float() @ b.float()).nan_to_num(12345.0, 777.0, -777.0))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("tiles", "valid"), [(1, 128), (2, 200), (9, 9 * 128 - 4), (5, 0)])
def test_a_ring_of_asynchronous_copies(basics: Any, seed: int, tiles: int, valid: int) -> None:
    # 16 floats more, of which an aligned part is used.
    memory = torch.randn(tiles * 128 + 16, generator=generator(seed))
    start = -memory.data_ptr() // 4 % 4
    x = memory[start : start + tiles * 128]
    out = torch.full((tiles * 128,), torch.nan)
    basics.emulator_set_seed(seed)
    basics.ring(x, tiles, valid, out)
    want = x.clone()
    want[valid:] = 0
    assert torch.equal(out, want)


def same_bits(a: Tensor, b: Tensor) -> bool:
    kept = ~a.isnan()
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a[kept].view(torch.int16), b[kept].view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_conversions_agree_with_torch_on_every_number(basics: Any, dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    wide = torch.empty(2**16)
    basics.convert(every, wide)
    assert torch.allclose(wide, every.float(), rtol=0, atol=0, equal_nan=True)
    # Each number, its neighbours in fp32, and the midpoints to the next one, where rounding goes to even.
    finite = every.float()[every.isfinite()].sort().values
    middles = (finite[1:].double() + finite[:-1].double()) / 2
    values = torch.cat(
        [finite, middles.float(), torch.tensor([torch.nan, torch.inf, -torch.inf, 65519.9, 65520, 3e38])]
    )
    values = torch.cat([values, torch.nextafter(values, torch.tensor(torch.inf))])
    values = torch.cat([values, torch.nextafter(values, torch.tensor(-torch.inf))])
    narrow = torch.empty(values.shape[0], dtype=dtype)
    basics.convert(values, narrow)
    assert same_bits(narrow, values.to(dtype))
