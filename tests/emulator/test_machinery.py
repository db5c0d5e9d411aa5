"""What the kernel tests stand on: planted mistakes are really planted and found, stray writes are seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import building
import pytest
import torch
from guarded import GuardedRoom
from mutations import Mutation

from questbench._paths import kernel_sources
from questbench.kernels import _build

HERE = Path(__file__).resolve().parent
SEEDS = range(6)


def ring(module: Any) -> bool:
    memory, tiles = torch.randn(9 * 128 + 16, generator=torch.Generator().manual_seed(1)), 9
    x = memory[-memory.data_ptr() // 4 % 4 :][: tiles * 128]
    out = torch.full((tiles * 128,), torch.nan)
    module.ring(x, tiles, tiles * 128, out)
    return torch.equal(out, x)


def sum_of_all(module: Any) -> bool:
    x, out = torch.ones(1000), torch.full((1,), torch.nan)
    counter = torch.zeros(1, dtype=torch.int32)
    module.sum(x, torch.full((5,), torch.nan), counter, out, 64)
    return bool(out.item() == 1000)


PLANTED = {
    "wait for one copy less": (r"copy_wait<2>", "copy_wait<3>", ring),
    "no wait": (r"    qb::copy_wait<2>\(\);\n", "", ring),
    "no barrier before the ring is read": (r"(copy_wait<2>\(\);\n)    __syncthreads\(\);\n", r"\1", ring),
    "the slot that is read is overwritten": (r"fetch\(tile \+ 2\);", "fetch(tile + 3);", ring),
    "one tile too few": (r"tile < tiles; \+\+tile", "tile < tiles - 1; ++tile", ring),
    "no barrier before the partial sums are read": (r"(= sum;\n)  __syncthreads\(\);\n", r"\1", sum_of_all),
    "the last block is one too early": (r"== gridDim\.x - 1", "== gridDim.x - 2", sum_of_all),
    "half a warp is added": (r"lanes = 16", "lanes = 8", sum_of_all),
}


def failures(module: Any, check: Any) -> int:
    failed = 0
    for seed in SEEDS:
        module.emulator_set_seed(seed)
        try:
            failed += not check(module)
        except RuntimeError as error:
            if "emulator: kernel" not in str(error):
                raise
            failed += 1
    return failed


@pytest.mark.parametrize("name", PLANTED)
def test_planted_mistakes_are_found(basics: Any, tmp_path: Path, name: str) -> None:
    pattern, replacement, check = PLANTED[name]
    text = (HERE / "basics.cu").read_text()
    source = tmp_path / "basics.cu"
    source.write_text(Mutation(name, "basics.cu", pattern, replacement).apply(text))
    assert failures(basics, check) == 0
    assert failures(_build.loaded(building.build_emulator([source, HERE / "basics_bind.cu"])), check) >= 1


def test_a_mutation_fits_exactly_once() -> None:
    once = Mutation("m", "f.cu", r"b(\d)", r"c\1")
    assert once.apply("a1 b2") == "a1 c2"
    for text in ("a1", "b1 b2"):
        with pytest.raises(ValueError, match="not once"):
            once.apply(text)
    with pytest.raises(ValueError, match="changes nothing"):
        Mutation("m", "f.cu", "a", "a").apply("a")


def test_a_mutated_copy_leaves_the_sources_alone(tmp_path: Path) -> None:
    root = kernel_sources()
    before = (root / "emulator" / "warp.cpp").read_bytes()
    copy = Mutation("m", "emulator/warp.cpp", r"#include <cmath>\n", "").copy(root, tmp_path / "copy")
    assert (copy / "emulator" / "warp.cpp").read_bytes() != before == (root / "emulator" / "warp.cpp").read_bytes()
    assert (copy / "include" / "questbench" / "device.h").is_file()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int32])
def test_room_is_poisoned_and_its_margins_are_watched(dtype: torch.dtype) -> None:
    with GuardedRoom() as room:
        tensors = [torch.empty((3, 5), dtype=dtype), torch.empty(7, 1, dtype=dtype, device=torch.device("cpu"))]
        assert [tuple(tensor.shape) for tensor in tensors] == [(3, 5), (7, 1)]
        for tensor in tensors:
            assert tensor.data_ptr() % 16 == 0 and tensor.is_contiguous() and tensor.dtype == dtype
            assert (tensor > 2**30).all() if dtype == torch.int32 else tensor.isnan().all()
            tensor.zero_()
        room.check()
    for offset in (-1, 15):
        with GuardedRoom() as room:
            inside = torch.empty((3, 5), dtype=dtype)
            torch.as_strided(inside, (1,), (1,), inside.storage_offset() + offset).zero_()
            with pytest.raises(AssertionError, match="outside of its result"):
                room.check()
